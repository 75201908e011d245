"""Parameters: what each route takes, declared once; query strings into typed queries."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams

from ckptd.catalog.entry import Health
from ckptd.catalog.facets import FACETS
from ckptd.catalog.query import FORMATS, MAX_PAGE_SIZE, SORT_FIELDS, Query, QueryError
from ckptd.validators.findings import CATALOGUE
from ckptd.validators.inspection import Level, Safety

from .backend import RebuildMode
from .parameter_types import Parameter, bounds, choice, choices, flag, integer, moment, pattern, read_parameters, text
from .problems import ProblemError

_REPEATED = "; sent several times, any of them"
_NOT_SORTABLE = ["path_base64", "metrics", "dtypes", "findings"]
FILTERS = (
    text(
        "q",
        "terms that must all hold, case does not matter. A word is found inside of words of path, name and experiment, "
        "and as the beginning of a word of hyper-parameters and config; `resn*` only as the beginning of a word; "
        '`"batch norm"` is a phrase; `architecture:dbnet`, `optimizer.lr:0.001`, `modified:2025-10-11..2025-10-12` are '
        "fields and values of the config; `hmean>0.8`, `size<10MB` compare; `-last` excludes",
        min_length=1,
        examples=("dbnet optimizer.lr:0.001 hmean>0.8 -last",),
    ),
    text("exp_name", f"the experiment's name{_REPEATED}", min_length=1, repeatable=True, examples=("dbnet_resnet18",)),
    text("architecture", f"the architecture's name{_REPEATED}", min_length=1, repeatable=True, examples=("dbnet",)),
    choice("format", f"the file's format{_REPEATED}", FORMATS, repeatable=True),
    choice("finding", f"the code of a finding{_REPEATED}", tuple(CATALOGUE), repeatable=True),
    moment("modified_after", "modified at this moment or later", examples=("2025-10-11T00:00:00Z",)),
    moment("modified_before", "modified before this moment"),
    choices("health", "one or more, separated by commas; without it all but `invalid`", Health),
    choices("safety", "one or more, separated by commas: what loading with `weights_only=False` could do", Safety),
    choices("verified", "one or more, separated by commas: how far it was verified", Level),
    flag("has_metadata", "whether its metadata is kept somewhere"),
    flag("include_invalid", "show those as well that cannot be used", examples=(True,)),
    bounds("min_", "lowest value of a metric, e.g. `min_hmean=0.8`; who does not have it does not match"),
    bounds("max_", "highest value of a metric, e.g. `max_val_loss=0.2`"),
)
"""Of lists and streams alike. All must hold."""
SORTING = (
    Parameter(
        name="sort_by",
        description="a metric's name (`metrics.<name>` where a field has the same), or one of "
        f"{', '.join(SORT_FIELDS)}; nulls come last. Newest first by default",
        schema={"type": "string", "pattern": "^[^\\u0000-\\u001f]{1,200}$", "not": {"enum": _NOT_SORTABLE}},
        read=str,
        wanted="the name of a field or of a metric",
        examples=("hmean",),
    ),
    choice("sort_order", "by default text ascending, times and numbers descending", ("asc", "desc")),
)
_PAGE_SIZE = integer("page_size", "entries on one page", high=MAX_PAGE_SIZE, default=50)
MAX_CURSOR = 8_000
"""A cursor holds the text that its list is sorted by."""
LIST = (
    integer("page", "which page", default=1),
    _PAGE_SIZE,
    text(
        "after",
        "`next` of the page before, instead of `page`: what follows it now, whatever came and went meanwhile",
        min_length=1,
        max_length=MAX_CURSOR,
    ),
    choices("facets", "count the values of these fields, under all other filters", FACETS, examples=(["health"],)),
    *SORTING,
    *FILTERS,
)
"""Of `GET /checkpoints`."""
STREAM = (
    integer("limit", "entries in all", high=MAX_PAGE_SIZE, default=50),
    integer("batch_size", "entries in one message", high=MAX_PAGE_SIZE, default=10),
    *SORTING,
    *FILTERS,
)
"""Of the streams that end; the defaults are those that existing studios know."""
EVENTS = (
    Parameter(
        name="last_event_id",
        description="the id of the last event that was read, where the header `Last-Event-ID` cannot be sent; "
        "of any doubt about it the answer is a snapshot",
        schema={"type": "string"},
        read=str,
        wanted="an event's id",
    ),
    *FILTERS,
)
"""Of the live stream."""
COMPATIBLE = (
    integer("limit", "the newest so many", high=MAX_PAGE_SIZE, default=100),
    integer("page", "answer with this page, in the envelope of `/checkpoints`"),
    integer("page_size", "entries on one page, instead of `limit`", high=MAX_PAGE_SIZE),
    *SORTING,
    *FILTERS,
)
"""Of the lists that existing studios ask for."""
REBUILD = (
    choice(
        "mode",
        "`sweep`: look at the whole tree; files that have not changed are not read again. "
        "`full`: read every checkpoint again, and accept the filesystems as they are mounted now",
        [mode.value for mode in RebuildMode],
        default=RebuildMode.SWEEP.value,
    ),
)
"""Of `POST /rebuild`."""
TOKEN = text("token", "signs a browser in; `ckptd token` prints the link", max_length=512)
"""Of the page, where a token is needed; read by `security`, before any route."""
ASSET = pattern(
    "name",
    "a file of the page, as the page names it",
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}",
    wanted="a name that the page uses",
    location="path",
)
LAST_EVENT_ID = Parameter(
    name="Last-Event-ID",
    description="the id of the last event that was read; browsers send it by themselves",
    schema={"type": "string"},
    read=str,
    wanted="an event's id",
    location="header",
)
CHECKPOINT_ID = pattern(
    "id",
    "a checkpoint's id: its slot, which survives overwriting the file",
    "[a-z2-7]{16}",
    wanted="an id from the list",
    location="path",
    required=True,
)


def parse_list(parameters: QueryParams) -> Query:
    """The query of `GET /checkpoints`.

    Raises:
        ProblemError: 400, naming the parameter, its value and what it may be.
    """
    return query_of(read_parameters(parameters, LIST))


def parse_stream(parameters: QueryParams) -> tuple[Query, int]:
    """The query and the batch size of the streams that end.

    Raises:
        ProblemError: as `parse_list`.
    """
    values = read_parameters(parameters, STREAM)
    return query_of(values), values["batch_size"]


def parse_compatible(parameters: QueryParams) -> Query:
    """The query of the lists that existing studios ask for.

    Raises:
        ProblemError: as `parse_list`.
    """
    values = read_parameters(parameters, COMPATIBLE)
    limit = values.pop("limit")
    return query_of({"page_size": limit} | values)


def parse_rebuild(parameters: QueryParams) -> RebuildMode:
    """How much of what is known `POST /rebuild` trusts.

    Raises:
        ProblemError: as `parse_list`.
    """
    return RebuildMode(read_parameters(parameters, REBUILD)["mode"])


def parse_events(parameters: QueryParams) -> Query:
    """The filters of `GET /checkpoints/events`.

    Raises:
        ProblemError: as `parse_list`.
    """
    return query_of(read_parameters(parameters, EVENTS))


def query_of(values: Mapping[str, Any]) -> Query:
    """The query that values of declared parameters ask for; `limit` is the size of its one page.

    Raises:
        ProblemError: as `parse_list`.
    """
    fields = {_FIELDS.get(name, name): value for name, value in values.items()}
    if "facets" in fields:
        fields["facets"] = tuple(dict.fromkeys(part.strip() for part in fields["facets"].split(",")))
    try:
        query = Query(**{name: fields[name] for name in Query.__struct_fields__ if name in fields})
        query.check()
    except QueryError as error:
        raise ProblemError(
            400,
            f"{error.field} cannot be {error.value}",
            remedy=error.remedy,
            field=error.field,
            value=str(error.value),
        ) from error
    return query


_FIELDS = {"limit": "page_size", "min_": "min_metrics", "max_": "max_metrics"}
"""Parameters that a query knows by another name."""
