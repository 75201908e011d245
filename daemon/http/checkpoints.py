"""Checkpoints: the list, one in full, its tensors, and the stream that ends."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import anyio.to_thread
import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.query import Page, Query
from ckptd.catalog.store import Tombstone

from . import sse
from .backend import Backend
from .compression import GzipStream
from .pages import Pages
from .parameter_types import read_parameters
from .parameters import parse_list, parse_rebuild, parse_stream
from .problems import ProblemError, rfc3339
from .responses import JSON, accepts_gzip, etag_of, is_current, json_response, not_modified
from .tensors import parse_tensors, table_of

IN_THREAD_FROM = 5_000
"""Tensors from which work leaves the event loop."""
DETAIL_OF_DESCRIPTION = ("findings", "metadata", "provenance", "user", "sidecar", "config", "redacted", "verified_at")
"""What one checkpoint in full shows besides its entry."""
DETAIL_OF_INSPECTION = (
    "hyper_parameters",
    "callbacks",
    "parameters_by_part",
    "unsafe_globals",
    "weights_only",
    "model_class",
    "has_state_dict",
    "can_load",
    "is_valid",
    "error_message",
    "warnings",
    "architecture_valid",
    "recognized",
    "lightning_version",
    "archive_id",
    "digest",
    "seal",
    "shards",
)


class Batch(Protocol):
    """Makes one event of some entries."""

    def __call__(self, records: Sequence[Record], *, has_more: bool) -> bytes:
        """As `sse.batch`."""
        ...


class CheckpointRoutes:
    """`/checkpoints` and below, and `/rebuild`; the live stream is in `events`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._catalog = backend.catalog
        self._pages = Pages(backend.catalog, backend.lines)

    async def list(self, request: Request) -> Response:
        """One page of entries."""
        return await self.listed(request, parse_list, page_json)

    async def listed(
        self, request: Request, parse: Callable[[QueryParams], Query], render: Callable[[Page], bytes]
    ) -> Response:
        """A page as `render` shows it, or 304 where the client has it already."""
        query = parse(request.query_params)
        etag = etag_of(request, self._catalog.instance, self._catalog.revision)
        headers = {"ETag": etag, "Cache-Control": self._backend.settings.list_cache_control}
        complete_as_of = rfc3339(self._backend.hub.complete_as_of())
        if complete_as_of is not None:
            headers["X-Complete-As-Of"] = complete_as_of
        if is_current(request, etag):
            return not_modified(headers)
        page = await self.page(query)
        return await json_response(request, render(page), headers)

    async def detail(self, request: Request) -> Response:
        """Everything known of one checkpoint, without its tensor table."""
        read_parameters(request.query_params, ())
        record = self.record_of(request.path_params["id"])
        description = await self._backend.description(record.entry.id)
        # Reading every byte again and finding all as before is no new revision; that it was read is shown all the same.
        read_at = description.verified_at if description is not None else None
        headers = self._validators(request, record, f"-{read_at}")
        if is_current(request, headers["ETag"]):
            return not_modified(headers)
        return await _shown(request, record, description, detail_of, headers)

    async def tensors(self, request: Request) -> Response:
        """The tensor table of one checkpoint, or a piece of it."""
        query = parse_tensors(request.query_params)
        record = self.record_of(request.path_params["id"])
        headers = self._validators(request, record)
        if is_current(request, headers["ETag"]):
            return not_modified(headers)
        description = await self._backend.description(record.entry.id)
        return await _shown(
            request, record, description, lambda record, known: table_of(record.entry.id, known, query), headers
        )

    async def stream(self, request: Request) -> Response:
        """The list as server-sent events: `batch`… then `complete`, and the response ends."""
        query, batch_size = parse_stream(request.query_params)
        return ending_stream(await self.page(query), batch_size, sse.batch, gzip=accepts_gzip(request))

    async def rebuild(self, request: Request) -> Response:
        """Start a rebuild; the live stream says when it is done."""
        mode = parse_rebuild(request.query_params)
        token = self._backend.request_rebuild(mode)
        body = msgspec.json.encode({"token": token, "mode": mode})
        return Response(body, 202, {"Cache-Control": "no-store"}, JSON)

    def _validators(self, request: Request, record: Record, seen: str = "") -> dict[str, str]:
        etag = etag_of(request, self._catalog.instance + seen, record.entry.revision)
        return {"ETag": etag, "Cache-Control": "no-cache"}

    async def page(self, query: Query) -> Page:
        """The page that a query asks for."""
        return await self._pages.page(query)

    def record_of(self, given: str) -> Record:
        """The record of an id that a client sent.

        Raises:
            ProblemError: 404 for one that never was, or was long ago; 410 for one that is gone, with when and why.
        """
        checkpoint_id = CheckpointId(given)
        record = self._catalog.get(checkpoint_id)
        if record is not None:
            return record
        tombstone = self._catalog.tombstone(checkpoint_id)
        if tombstone is None:
            raise ProblemError(
                404,
                "no checkpoint has this id",
                remedy="take an id from the list; include_invalid=true also shows those that cannot be used",
                field="id",
                value=checkpoint_id,
            )
        raise self._gone(tombstone)

    def _gone(self, tombstone: Tombstone) -> ProblemError:
        deleted_at = rfc3339(tombstone.deleted_at)
        moved_to = None if tombstone.moved_to is None else self._catalog.get(tombstone.moved_to)
        members = {"path": tombstone.path, "reason": tombstone.reason, "deleted_at": deleted_at}
        if moved_to is not None:
            members["moved_to"] = moved_to.entry.id
        now = (
            "drop it from what you keep" if moved_to is None else f"it is {moved_to.entry.path} now, use that one's id"
        )
        return ProblemError(
            410,
            f"{tombstone.path} was {tombstone.reason} at {deleted_at}",
            remedy=f"{now}; if a file comes back under the old name, so does its id",
            field="id",
            value=tombstone.id,
            members=members,
        )


async def _shown(
    request: Request,
    record: Record,
    description: Description | None,
    show: Callable[[Record, Description | None], Any],
    headers: dict[str, str],
) -> Response:
    if description is not None and len(description.tensors) >= IN_THREAD_FROM:
        body = await anyio.to_thread.run_sync(lambda: msgspec.json.encode(show(record, description)))
    else:
        body = msgspec.json.encode(show(record, description))
    return await json_response(request, body, headers)


def page_json(page: Page) -> bytes:
    """A page as JSON, put together from the entries' own bytes."""
    facets = b"" if page.facets is None else b',"facets":%b' % msgspec.json.encode(page.facets)
    return (b'{"checkpoints":[%b],"total":%d,"page":%d,"page_size":%d,"total_pages":%d,"revision":%d,"next":%b%b}') % (
        b",".join([record.encoded for record in page.records]),
        page.total,
        page.page,
        page.page_size,
        page.total_pages,
        page.revision,
        msgspec.json.encode(page.next),
        facets,
    )


def detail_of(record: Record, description: Description | None) -> dict[str, Any]:
    """The entry, and what its description adds; findings with message and remedy."""
    detail: dict[str, Any] = dict(msgspec.to_builtins(record.entry))
    if description is None:
        return detail
    detail |= {name: getattr(description, name) for name in DETAIL_OF_DESCRIPTION}
    detail |= {name: getattr(description.inspection, name) for name in DETAIL_OF_INSPECTION}
    return detail | {"n_tensors": len(description.tensors)}


def ending_stream(page: Page, batch_size: int, batch: Batch, *, gzip: bool = False) -> Response:
    """A page as server-sent events, `batch_size` entries in each but the last, which says `complete`."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept-Encoding"}
    messages = _batches(page, batch_size, batch)
    if gzip:
        headers["Content-Encoding"] = "gzip"
        messages = _gzipped(messages)
    return StreamingResponse(messages, headers=headers, media_type="text/event-stream")


async def _batches(page: Page, batch_size: int, batch: Batch) -> AsyncIterator[bytes]:
    records = page.records
    for start in range(0, len(records), batch_size):
        yield batch(records[start : start + batch_size], has_more=start + batch_size < len(records))
    yield sse.complete(len(records), page.revision)


async def _gzipped(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    stream = GzipStream()
    async for message in messages:
        yield stream.piece(message)
    yield stream.end()
