"""Models: what answers look like on the wire, as pydantic models; those of entries are made from what is encoded."""

import ast
import functools
import inspect
import itertools
import textwrap
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import pydantic
from pydantic import ConfigDict, Field
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from ckptd.catalog import compare
from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointEntry
from ckptd.catalog.query import Page
from ckptd.catalog.store import DeleteReason
from ckptd.validators.inspection import Inspection

from ..status import Status
from . import tensors
from .backend import RebuildMode
from .checkpoints import DETAIL_OF_DESCRIPTION, DETAIL_OF_INSPECTION
from .compat import CompatEntry

_T = TypeVar("_T")
_MADE = ConfigDict(extra="forbid")
"""Of models that are made from structs: their fields are described by then, and pydantic looks for docstrings of a
class that has no source in each frame of the stack, which takes a second where torch is imported."""
_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_TIMES = frozenset(
    (
        "at",
        "started_at",
        "last_build_at",
        "last_partial_build_at",
        "complete_as_of",
        "sweep_started_at",
        "oldest_verified_at",
    )
)
"""Fields of the service's status that are epoch seconds inside, and RFC 3339 on the wire."""
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339, UTC."""


# ---- from the structs that are encoded -------------------------------------------------------------------------


class _AsEncoded:
    """Has pydantic read a msgspec struct as the model of what it looks like on the wire."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(model_of(source))


Encoded = Annotated[_T, _AsEncoded()]
"""`Encoded[CheckpointEntry]`: the struct of that name, as it is encoded."""


@functools.cache
def model_of(struct: type[msgspec.Struct]) -> type[pydantic.BaseModel]:
    """The pydantic model of a struct on the wire: the same fields, all of them there but those that may be unset.

    Descriptions are the docstrings of the struct and of its fields, where the source is at hand.
    """
    return _model(struct.__name__, struct.__doc__, members_of(struct))


def members_of(struct: type[msgspec.Struct], *names: str, optional: bool = False) -> dict[str, Any]:
    """Fields for `pydantic.create_model`: of a struct and its properties.

    Args:
        struct: what is encoded.
        names: those that are wanted; by default all fields.
        optional: they may be missing.
    """
    docs = field_docs(struct)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    members: dict[str, Any] = {}
    for name in names or fields:
        if name in fields:
            annotation, wire_name, doc = fields[name].type, fields[name].encode_name, docs.get(name)
        else:
            read = getattr(struct, name).fget
            annotation, wire_name, doc = typing.get_type_hints(read)["return"], name, _one_line(read.__doc__)
        missing: dict[str, Any] = {"default_factory": str} if optional or _may_be_unset(annotation) else {}
        if name in _TIMES and annotation in (float, float | None):
            annotation = Time if annotation is float else Time | None
            doc = doc and doc.replace("; epoch seconds", "")
        members[wire_name] = (_wire_type(annotation), Field(description=doc, **missing))
    return members


def _model(name: str, doc: str | None, members: dict[str, Any]) -> type[pydantic.BaseModel]:
    return pydantic.create_model(name, __config__=_MADE, __doc__=_one_line(doc), __module__=__name__, **members)


def _one_line(doc: str | None) -> str | None:
    return None if doc is None else " ".join(doc.split())


def field_docs(cls: type) -> dict[str, str]:
    """The docstrings beneath a class's fields, by name; none where its source cannot be had."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, doc in itertools.pairwise(definition.body):
        target = field.target if isinstance(field, ast.AnnAssign) else getattr(field, "targets", [None])[0]
        if isinstance(target, ast.Name) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            found[target.id] = _one_line(str(doc.value.value)) or ""
    return found


def _may_be_unset(annotation: Any) -> bool:
    return msgspec.UnsetType in typing.get_args(annotation)


def _without_none(annotation: Any) -> Any:
    return functools.reduce(lambda a, b: a | b, [a for a in typing.get_args(annotation) if a is not types.NoneType])


def _wire_type(annotation: Any) -> Any:
    """The same type with structs as their models, arrays as lists, and without what is never written."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return model_of(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if not arguments:
        return annotation
    kept = [_wire_type(a) for a in arguments if a is not msgspec.UnsetType and a is not ...]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(lambda a, b: a | b, kept)
    if origin is tuple and ... in arguments:
        return list[kept[0]]  # type: ignore[valid-type]
    return origin[tuple(kept)] if origin is not None else annotation


# ---- answers ---------------------------------------------------------------------------------------------------


class Wire(pydantic.BaseModel):
    """What all models have in common: nothing is on the wire that they do not name."""

    model_config = _STRICT


def _detail() -> type[pydantic.BaseModel]:
    """An entry, and what its description adds, where one is kept."""
    members = members_of(CheckpointEntry)
    members |= members_of(Description, *DETAIL_OF_DESCRIPTION, optional=True)
    members |= members_of(Inspection, *DETAIL_OF_INSPECTION, optional=True)
    n_tensors = Field(description="Rows of its tensor table.", default_factory=int)
    return _model("CheckpointDetail", _detail.__doc__, members | {"n_tensors": (int, n_tensors)})


def _health() -> type[pydantic.BaseModel]:
    """How far the catalog can be trusted, and why."""
    members = members_of(Status)
    members["catalog_status"] = members.pop("state")
    members["last_build_time_seconds"] = members["last_build_time"] = members.pop("last_build_s")
    members["metadata_coverage"] = members_of(Status, "metadata_coverage")["metadata_coverage"]
    may_rebuild = Field(description="Whether whoever asks may also ask for a rebuild, by token, cookie or socket.")
    return _model("CatalogHealth", _health.__doc__, members | {"may_rebuild": (bool, may_rebuild)})


def _page() -> type[pydantic.BaseModel]:
    """One page of what matches."""
    entries: Any = (list[Encoded[CheckpointEntry]], ...)
    members = {"checkpoints": entries} | members_of(Page, *_PAGE) | members_of(Page, "facets", optional=True)
    annotation, field = members["facets"]
    members["facets"] = (_without_none(annotation), field)
    return _model("CheckpointPage", _page.__doc__, members)


_PAGE = ("total", "page", "page_size", "total_pages", "revision", "next")
CheckpointPage = _page()
CheckpointDetail = _detail()
TensorTable = model_of(tensors.TensorTable)
Comparison = model_of(compare.Comparison)
CatalogHealth = _health()


class CompatiblePage(Wire):
    """One page, with the field names of existing studios."""

    checkpoints: list[Encoded[CompatEntry]]
    total: int
    page: int
    page_size: int
    total_pages: int
    revision: int


CompatibleList = list[Encoded[CompatEntry]] | CompatiblePage
"""An array, or the envelope where a page was asked for."""


class Liveness(Wire):
    """The process answers."""

    status: Literal["ok"]


class RebuildAccepted(Wire):
    """A rebuild has begun, or the one that was waiting was joined."""

    token: str
    """The live stream says `rebuilt` with this token when it is done."""
    mode: RebuildMode


class OpenApiDocument(pydantic.BaseModel):
    """OpenAPI 3.1."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


class Problem(Wire):
    """Why a request was refused (RFC 9457), and what to do about it."""

    type: Literal["about:blank"]
    title: str
    """The status's phrase."""
    status: int
    detail: str
    """What happened."""
    remedy: str
    """What the caller can do."""
    field: str = Field(default_factory=str)
    """The parameter, header or part of the path that is to blame."""
    value: str = Field(default_factory=str, max_length=200)
    """What it held."""


class Gone(Problem):
    """A checkpoint that was there."""

    path: str
    reason: DeleteReason
    deleted_at: Time
    moved_to: str = Field(default_factory=str)
    """The id under which the file is listed now."""


class NotAcceptable(Problem):
    """None of the media types that are accepted can be had."""

    available: list[str]
    """Those that can."""


# ---- the data of events ----------------------------------------------------------------------------------------


class Reset(Wire):
    """Drop what you have; a snapshot follows. Its event has an empty id."""

    type: Literal["reset"]
    reason: str


class Batch(Wire):
    """A piece of a snapshot, newest first. Its event has no id."""

    type: Literal["batch"]
    checkpoints: list[Encoded[CheckpointEntry]]
    count: int
    has_more: bool


class CompatibleBatch(Wire):
    """A piece of a list, with the field names of existing studios."""

    type: Literal["batch"]
    checkpoints: list[Encoded[CompatEntry]]
    count: int
    has_more: bool


class Complete(Wire):
    """The snapshot is done; it showed the catalog as it stood at `revision`."""

    type: Literal["complete"]
    total: int
    revision: int


class Resumed(Wire):
    """The reader's cursor is good; what it missed follows. Comes instead of a snapshot."""

    type: Literal["resumed"]
    revision: int


class Upsert(Wire):
    """Full states of new or changed entries."""

    type: Literal["upsert"]
    checkpoints: list[Encoded[CheckpointEntry]]


class Deleted(Wire):
    """An entry that left the catalog, or the reader's filtered view of it."""

    id: str
    path: str
    reason: DeleteReason
    moved_to: str = Field(default_factory=str)
    """The id under which the file is listed now."""


class Delete(Wire):
    """Entries that are to be dropped."""

    type: Literal["delete"]
    checkpoints: list[Deleted]


class Heartbeat(Wire):
    """The stream lives; the reader has everything up to `revision`."""

    type: Literal["heartbeat"]
    revision: int
    complete_as_of: Time | None


class Progress(Wire):
    """How far a sweep or rebuild has come, in paths."""

    type: Literal["progress"]
    done: int
    total: int


class Rebuilt(Wire):
    """The rebuild of that token is done; what it found is in the log up to `revision`."""

    type: Literal["rebuilt"]
    token: str
    revision: int


class Bye(Wire):
    """The server ends the stream; come back after the `retry:` of this event."""

    type: Literal["bye"]
    reason: str


_BY_TYPE = Field(discriminator="type")
LiveMessage = Annotated[
    Reset | Batch | Complete | Resumed | Upsert | Delete | Heartbeat | Progress | Rebuilt | Bye, _BY_TYPE
]
"""The data of an event of the live stream."""
EndingMessage = Annotated[Batch | Complete, _BY_TYPE]
"""The data of an event of the stream that ends."""
CompatibleMessage = Annotated[CompatibleBatch | Complete, _BY_TYPE]
