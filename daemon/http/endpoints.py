"""Endpoints: every route of the catalog, declared once: who answers, what it takes, and what it answers."""

import functools

from starlette.requests import Request
from starlette.responses import Response

from ..settings import Settings
from .backend import Backend
from .checkpoints import CheckpointRoutes
from .compare import COMPARE, CSV, MARKDOWN, CompareRoutes
from .compat import CompatRoutes
from .endpoint import EVENT_STREAM, NO_CONTENT, Answer, Endpoint
from .events import GZIP_HEADERS, STREAM_HEADERS
from .health import HealthRoutes
from .openapi import ApiDescription
from .page import PageRoutes
from .page_files import PageFiles
from .parameters import (
    ASSET,
    CHECKPOINT_ID,
    COMPATIBLE,
    EVENTS,
    LAST_EVENT_ID,
    LIST,
    REBUILD,
    STREAM,
    TOKEN,
    parse_events,
)
from .problems import MEDIA_TYPE
from .responses import JSON, accepts_gzip
from .security import AccessPolicy
from .tensors import TENSORS

EVENTS_PATH = "/checkpoints/events"
_CACHED = ("ETag", "Cache-Control", "Vary")
_NOT_MODIFIED = Answer(
    status=304,
    description="What the client has (`If-None-Match`) is what it would get.",
    media_type=NO_CONTENT,
    headers=_CACHED,
)
_LIST_NOT_MODIFIED = Answer(
    status=304,
    description=_NOT_MODIFIED.description,
    media_type=NO_CONTENT,
    headers=_CACHED,
    may_have=("X-Complete-As-Of",),
)


def endpoints(backend: Backend, access: AccessPolicy, page: PageFiles | None = None) -> tuple[Endpoint, ...]:
    """All endpoints of a service, in the order in which a request's path is compared with theirs."""
    checkpoints = CheckpointRoutes(backend)
    compare = _compare(CompareRoutes(backend, checkpoints))
    catalog = (*_lists(backend, checkpoints), compare, *_single(checkpoints), *_compatible(CompatRoutes(checkpoints)))
    operating = (_rebuild(checkpoints), *_health(HealthRoutes(backend, access)))
    description = ApiDescription(access)
    routes = PageRoutes(backend, page if backend.settings.page else None)
    described = (*catalog, *operating, _openapi(description))
    declared = (_first(routes, access), *described, *_page_files(routes))
    description.of(declared)
    routes.shows(described)
    return declared


def _lists(backend: Backend, checkpoints: CheckpointRoutes) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            path="/checkpoints",
            handler=checkpoints.list,
            name="list_checkpoints",
            summary="one page of the catalog, newest first; filter, sort and search by parameters",
            parameters=LIST,
            answers=(
                Answer(
                    description="One page of entries.",
                    model="CheckpointPage",
                    headers=_CACHED,
                    may_have=("X-Complete-As-Of", "Content-Encoding"),
                    example="list",
                    links={"get_checkpoint": "/checkpoints/0/id", "list_tensors": "/checkpoints/0/id"},
                ),
                _LIST_NOT_MODIFIED,
            ),
        ),
        Endpoint(
            path="/checkpoints/stream",
            handler=checkpoints.stream,
            name="stream_checkpoints",
            summary="the list as server-sent events that end",
            description="`batch` events, then `complete`, and the response ends.",
            parameters=STREAM,
            answers=(
                Answer(
                    description="Unnamed events; the data of each is one JSON object.",
                    media_type=EVENT_STREAM,
                    model="EndingMessage",
                    headers=("Cache-Control", "Vary", "X-Accel-Buffering"),
                    may_have=("Content-Encoding",),
                    example="stream",
                ),
            ),
        ),
        Endpoint(
            path=EVENTS_PATH,
            handler=functools.partial(_live_stream_head, heartbeat_header(backend.settings)),
            name="watch_checkpoints",
            summary="the live stream: a snapshot, then every change",
            description="`reset`, `batch`…, `complete`; then `upsert`, `delete`, `heartbeat` and more, until `bye`. "
            "Whoever returns with the last event's id gets `resumed` and what it missed. A cursor is never refused: of "
            "any doubt about it the answer is `reset` and a snapshot.",
            parameters=(*EVENTS, LAST_EVENT_ID),
            answers=(
                Answer(
                    description="Unnamed events; the data of each is one JSON object. Does not end by itself.",
                    media_type=EVENT_STREAM,
                    model="LiveMessage",
                    headers=("Cache-Control", "X-Accel-Buffering", "X-Heartbeat-Interval"),
                    may_have=("Content-Encoding", "Vary"),
                    example="events",
                ),
            ),
        ),
    )


def _compare(compare: CompareRoutes) -> Endpoint:
    forms = (("Two to four checkpoints side by side.", JSON, "Comparison"), ("A table.", CSV, None))
    return Endpoint(
        path="/checkpoints/compare",
        handler=compare.compare,
        name="compare_checkpoints",
        summary="two to four checkpoints side by side, as JSON, CSV or Markdown",
        description="Tensors are aligned by name. `same` and `changed` are certain only as far as recorded checksums "
        "say; everything else of equal shape and type is `unknown`.",
        parameters=COMPARE,
        answers=(
            *(
                Answer(
                    description=description,
                    media_type=form,
                    model=model,
                    headers=_CACHED,
                    may_have=("Content-Encoding",),
                )
                for description, form, model in (*forms, ("A report.", MARKDOWN, None))
            ),
            _NOT_MODIFIED,
        ),
        problems=(404, 406, 410),
    )


def _single(checkpoints: CheckpointRoutes) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            path="/checkpoints/{id}",
            handler=checkpoints.detail,
            name="get_checkpoint",
            summary="everything known of one checkpoint, with its findings and what to do about them",
            parameters=(CHECKPOINT_ID,),
            answers=(
                Answer(
                    description="The entry, and what its description adds, where one is kept.",
                    model="CheckpointDetail",
                    headers=_CACHED,
                    may_have=("Content-Encoding",),
                    example="detail",
                    links={"list_tensors": "/id"},
                ),
                _NOT_MODIFIED,
            ),
            problems=(404, 410),
        ),
        Endpoint(
            path="/checkpoints/{id}/tensors",
            handler=checkpoints.tensors,
            name="list_tensors",
            summary="its tensor table, or a piece of it",
            parameters=(CHECKPOINT_ID, *TENSORS),
            answers=(
                Answer(
                    description="The tensors as the file describes them; nothing of their data was read.",
                    model="TensorTable",
                    headers=_CACHED,
                    may_have=("Content-Encoding",),
                    example="tensors",
                ),
                _NOT_MODIFIED,
            ),
            problems=(404, 410),
        ),
    )


def _compatible(compat: CompatRoutes) -> tuple[Endpoint, ...]:
    shown = Answer(
        description="A bare array; with `page`, one page in the envelope of `/checkpoints`.",
        model="CompatibleList",
        headers=_CACHED,
        may_have=("X-Complete-As-Of", "Content-Encoding"),
        example="compatible",
    )
    stream = Answer(
        description="As `/checkpoints/stream`, with these field names.",
        media_type=EVENT_STREAM,
        model="CompatibleMessage",
        headers=("Cache-Control", "Vary", "X-Accel-Buffering"),
        may_have=("Content-Encoding",),
    )
    return (
        Endpoint(
            path="/api/inference/checkpoints",
            handler=compat.list,
            name="list_inference_checkpoints",
            summary="the newest checkpoints, with the field names of existing studios",
            parameters=COMPATIBLE,
            answers=(shown, _LIST_NOT_MODIFIED),
            tag="compatible",
        ),
        Endpoint(
            path="/api/inference/checkpoints/stream",
            handler=compat.stream,
            name="stream_inference_checkpoints",
            summary="the same as server-sent events that end",
            parameters=STREAM,
            answers=(stream,),
            tag="compatible",
        ),
        Endpoint(
            path="/api/v1/checkpoints",
            handler=compat.list,
            name="list_v1_checkpoints",
            summary="as /api/inference/checkpoints",
            parameters=COMPATIBLE,
            answers=(shown, _LIST_NOT_MODIFIED),
            tag="compatible",
        ),
    )


def _rebuild(checkpoints: CheckpointRoutes) -> Endpoint:
    accepted = Answer(
        status=202,
        description="It has begun; the live stream says `rebuilt` with this token when it is done.",
        model="RebuildAccepted",
        headers=("Cache-Control",),
        example="rebuild",
    )
    return Endpoint(
        method="POST",
        path="/rebuild",
        handler=checkpoints.rebuild,
        name="rebuild",
        summary="look at the whole tree again",
        description="A body is not looked at. Browsers may send it from the catalog's own page only.",
        parameters=REBUILD,
        answers=(accepted,),
        tag="service",
    )


def _health(health: HealthRoutes) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            path="/health",
            handler=health.live,
            name="get_liveness",
            summary="the process answers",
            answers=(Answer(description="It does.", model="Liveness", headers=("Cache-Control",), example="liveness"),),
            is_public=True,
            tag="service",
        ),
        Endpoint(
            path="/health/checkpoints",
            handler=health.checkpoints,
            name="get_health",
            summary="how far the catalog can be trusted, and why",
            answers=(
                Answer(
                    description="Always 200: the answer is in the body.",
                    model="CatalogHealth",
                    headers=("Cache-Control",),
                    example="health",
                ),
            ),
            tag="service",
        ),
        Endpoint(
            path="/metrics",
            handler=health.metrics,
            name="get_metrics",
            summary="metrics for Prometheus",
            answers=(
                Answer(description="Prometheus' text format.", media_type="text/plain", headers=("Cache-Control",)),
            ),
            tag="service",
        ),
    )


def _first(page: PageRoutes, access: AccessPolicy) -> Endpoint:
    return Endpoint(
        path="/",
        handler=page.index,
        name="get_page",
        summary="the page",
        description="Its parameters are the state of the page; the service looks at none but `token`.",
        parameters=() if access.is_open else (TOKEN,),
        answers=_first_answers() if access.is_open else (*_first_answers(), *_signing_in()),
        checks_query=False,
        tag="service",
    )


def _first_answers() -> tuple[Answer, ...]:
    shown = Answer(
        description="For people; where the page was left out or switched off, it says so and names the endpoints.",
        media_type="text/html",
        headers=("Cache-Control", "Vary"),
        may_have=("ETag", "Content-Encoding"),
    )
    return shown, _NOT_MODIFIED


def _signing_in() -> tuple[Answer, ...]:
    signed_in = Answer(
        status=303,
        description="With `token`: a cookie, and the address without the token.",
        media_type=NO_CONTENT,
        headers=("Location", "Set-Cookie", "Cache-Control"),
    )
    refused = (
        Answer(
            status=status,
            description=description,
            media_type=form,
            model=model,
            headers=("Cache-Control", header),
        )
        for status, header, description in (
            (401, "WWW-Authenticate", "The token is missing or wrong."),
            (429, "Retry-After", "Too many wrong tokens came from there; the right one is let in at once."),
        )
        for form, model in ((MEDIA_TYPE, "Problem"), ("text/html", None))
    )
    return signed_in, *refused


def _page_files(page: PageRoutes) -> tuple[Endpoint, ...]:
    """What the page is made of: no secrets, so needed before signing in, too, and by studios on other origins."""

    def of(path: str, name: str, summary: str, *media_types: str) -> Endpoint:
        answers = (
            Answer(description="The file.", media_type=form, headers=_CACHED, may_have=("Content-Encoding",))
            for form in media_types
        )
        is_asset = path.startswith("/assets/")
        return Endpoint(
            path=path,
            handler=page.asset if is_asset else page.file,
            name=name,
            summary=summary,
            parameters=(ASSET,) if is_asset else (),
            answers=(*answers, _NOT_MODIFIED),
            problems=(404,),
            checks_query=False,
            is_public=True,
            tag="service",
        )

    script, style, image = "text/javascript", "text/css", "image/svg+xml"
    return (
        of("/client.js", "get_client", "the stream client, an ES module for other pages", script),
        of("/favicon.svg", "get_icon", "the icon of the page", image),
        of("/sign-in.css", "get_sign_in_style", "the style of the sign-in page", style),
        of(
            "/assets/{name}",
            "get_asset",
            "a file of the page; its name changes with its contents",
            script,
            style,
            image,
        ),
    )


def _openapi(description: ApiDescription) -> Endpoint:
    return Endpoint(
        path="/openapi.json",
        handler=description.answer,
        name="get_openapi",
        summary="this description of the API",
        answers=(
            Answer(
                description="OpenAPI 3.1.",
                model="OpenApiDocument",
                headers=_CACHED,
                may_have=("Content-Encoding",),
            ),
            _NOT_MODIFIED,
        ),
        tag="service",
    )


def heartbeat_header(settings: Settings) -> tuple[bytes, bytes]:
    """How often the live stream says that it lives."""
    return b"x-heartbeat-interval", b"%g" % settings.heartbeat_s


async def _live_stream_head(heartbeat: tuple[bytes, bytes], request: Request) -> Response:
    """What a GET would begin with; GET itself goes straight to the hub, ahead of the routes."""
    parse_events(request.query_params)
    response = Response()
    response.raw_headers = [*(GZIP_HEADERS if accepts_gzip(request) else STREAM_HEADERS), heartbeat]
    return response
