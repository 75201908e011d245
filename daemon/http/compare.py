"""`/checkpoints/compare`: two to four checkpoints side by side, as JSON, CSV or Markdown."""

import hashlib

import anyio
import anyio.to_thread
import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from ckptd.catalog.compare import FEWEST, MOST, Comparison, Side, compare
from ckptd.catalog.compare_tensors import TensorChange, TensorSelection
from ckptd.catalog.compare_text import to_csv, to_markdown
from ckptd.validators.text import counted

from .backend import Backend
from .checkpoints import CheckpointRoutes
from .negotiation import negotiate
from .parameter_types import Parameter, choice, choices, integer, read_parameters
from .parameters import CHECKPOINT_ID
from .problems import ProblemError
from .responses import JSON, VARY, body_response, etag_of, is_current, not_modified
from .tensors import MAX_LIMIT

CSV, MARKDOWN = "text/csv", "text/markdown"
FORMATS = {"json": JSON, "csv": CSV, "markdown": MARKDOWN}
CONTENT_TYPES = {
    JSON: JSON,
    CSV: "text/csv; charset=utf-8; header=present",  # RFC 4180, 3
    MARKDOWN: "text/markdown; charset=utf-8; variant=GFM",  # RFC 7763 and its registry of variants
}
AT_ONCE = 2
"""Comparisons under way: each keeps a core busy (0.2 s for twice 20,000 tensors), and others want to be served too."""

COMPARE = (
    Parameter(
        name="id",
        description=f"{FEWEST} to {MOST} different ids, each as a parameter of its own; changes are told against the "
        "first one",
        schema=CHECKPOINT_ID.schema,
        array_schema={"minItems": FEWEST, "maxItems": MOST, "uniqueItems": True},
        read=str,
        wanted="an id from the list",
        repeatable=True,
        required=True,
    ),
    integer("tensor_limit", "rows of the tensor table; 0 for their numbers alone", low=0, high=MAX_LIMIT, default=1000),
    integer(
        "tensor_offset", "rows of the tensor table to pass over before; what differs comes first", low=0, default=0
    ),
    choices("tensor_change", "only rows with one of these changes, separated by commas", TensorChange),
    choice("format", "instead of what the header `Accept` asks for", tuple(FORMATS)),
)
"""Of `GET /checkpoints/compare`."""


class CompareRoutes:
    """`/checkpoints/compare`."""

    def __init__(self, backend: Backend, checkpoints: CheckpointRoutes) -> None:
        self._backend = backend
        self._checkpoints = checkpoints
        self._turn = anyio.CapacityLimiter(AT_ONCE)

    async def compare(self, request: Request) -> Response:
        """The checkpoints named by `id`, side by side."""
        ids, selection, media_type = parse_compare(request.query_params, request.headers.get("accept", ""))
        entries = [self._checkpoints.record_of(checkpoint_id).entry for checkpoint_id in ids]
        async with self._turn:
            sides = [Side(entry, await self._backend.description(entry.id)) for entry in entries]
            etag = etag_of(request, f"{self._backend.catalog.instance}-{_seen(sides, media_type)}", 0)
            headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": f"Accept, {VARY}"}
            if is_current(request, etag):
                return not_modified(headers)
            body = await anyio.to_thread.run_sync(_rendered, sides, selection, media_type)
        return await body_response(request, body, headers, CONTENT_TYPES[media_type])


def parse_compare(parameters: QueryParams, accept: str) -> tuple[tuple[str, ...], TensorSelection, str]:
    """What `GET /checkpoints/compare` is asked for: ids, rows of the tensor table, media type.

    Raises:
        ProblemError: 400 for a parameter that cannot be used, 406 where the client takes none of the forms.
    """
    values = read_parameters(parameters, COMPARE)
    ids: tuple[str, ...] = values.get("id", ())
    if not FEWEST <= len(ids) <= MOST or len(set(ids)) < len(ids):
        raise ProblemError(
            400,
            "an id is there twice"
            if FEWEST <= len(ids) <= MOST
            else f"{counted(len(ids), 'checkpoint')} cannot be compared",
            remedy=f"give {FEWEST} to {MOST} different ids: ?id=…&id=…",
            field="id",
            value=", ".join(ids),
        )
    changes = values.get("tensor_change")
    chosen = (
        frozenset(TensorChange(part.strip()) for part in changes.split(",")) if changes else frozenset(TensorChange)
    )
    selection = TensorSelection(limit=values["tensor_limit"], offset=values["tensor_offset"], changes=chosen)
    media_type = FORMATS[values["format"]] if "format" in values else negotiate(accept, tuple(FORMATS.values()))
    if media_type is None:
        raise ProblemError(
            406,
            "a comparison has none of the forms that the request takes",
            remedy=f"accept {', '.join(FORMATS.values())}, or send format={'|'.join(FORMATS)}",
            field="accept",
            value=accept,
            headers={"Vary": "Accept"},
            members={"available": list(FORMATS.values())},
        )
    return ids, selection, media_type


def _seen(sides: list[Side], media_type: str) -> str:
    """Changes with all that a comparison shows: a file that was read through has a digest, maybe no new revision."""
    known = [
        (side.entry.id, side.entry.revision, side.description and side.description.inspection.digest) for side in sides
    ]
    return hashlib.blake2b(msgspec.msgpack.encode((known, media_type)), digest_size=8).hexdigest()


def _rendered(sides: list[Side], selection: TensorSelection, media_type: str) -> bytes:
    comparison: Comparison = compare(sides, selection)
    if media_type == JSON:
        return msgspec.json.encode(comparison)
    return (to_csv if media_type == CSV else to_markdown)(comparison).encode()
