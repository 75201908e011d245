"""The page: its files, what the server tells it about itself, and what stands in its place where it was left out."""

import hashlib
import html
from collections.abc import Iterable

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .backend import Backend
from .endpoint import Endpoint
from .page_files import PageFile, PageFiles
from .problems import ProblemError
from .responses import VARY, accepts_gzip, body_response, is_current, not_modified

HTML = "text/html; charset=utf-8"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""No inline script or style: a name that got into the page as markup by mistake could still do nothing."""
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
IMMUTABLE = "public, max-age=31536000, immutable"
_LEFT_OUT = (
    "The page was left out of this installation (CKPTD_PAGE=skip, or a checkout that has not been built). "
    "To have it, install ckptd again without CKPTD_PAGE; in a checkout, run <code>scripts/run</code>."
)
_OFF = "The page is switched off (setting <code>page</code>)."


class PageRoutes:
    """Answers `/` and the files of the page."""

    def __init__(self, backend: Backend, files: PageFiles | None) -> None:
        self._backend = backend
        self._files = files
        self._endpoints: tuple[Endpoint, ...] = ()

    def shows(self, endpoints: Iterable[Endpoint]) -> None:
        """Name these where there is no page."""
        self._endpoints = tuple(endpoint for endpoint in endpoints if endpoint.path != "/")

    async def index(self, request: Request) -> Response:
        """The page itself."""
        if self._files is None:
            return self._first_page()
        told = html.escape(self._told(request, self._files))
        body = f'{self._files.before}<meta name="ckptd" content="{told}" />{self._files.after}'.encode()
        coding = "gzip" if accepts_gzip(request) else "identity"
        etag = f'"{hashlib.blake2b(body, digest_size=9).hexdigest()}-{coding}"'
        headers = PAGE_HEADERS | {"ETag": etag, "Cache-Control": "no-cache"}
        return not_modified(headers) if is_current(request, etag) else await body_response(request, body, headers, HTML)

    async def asset(self, request: Request) -> Response:
        """A file that Vite named by its contents."""
        return self._file(request, f"assets/{request.path_params['name']}")

    async def file(self, request: Request) -> Response:
        """A file with a name that stays."""
        return self._file(request, request.url.path.rpartition("/")[2])

    def _file(self, request: Request, name: str) -> Response:
        found = None if self._files is None else self._files.get(name)
        if found is None:
            raise ProblemError(
                404,
                "the page has no such file",
                remedy="load the page again; it was left out of this installation if / says so",
                field="path",
                value=request.url.path,
            )
        return _answer(request, found)

    def _told(self, request: Request, files: PageFiles) -> str:
        settings = self._backend.settings
        roots = [root.path for root in self._backend.status().roots] or list(settings.roots)
        told = {
            "version": files.version,
            "instance": self._backend.catalog.instance,
            "roots": [root.encode("utf-8", "backslashreplace").decode() for root in roots],
            "streaming": settings.page_streaming,
            "base": request.scope.get("root_path", "") + "/",
            "heartbeat_s": settings.heartbeat_s,
        }
        return msgspec.json.encode(told).decode()

    def _first_page(self) -> Response:
        """A readable list of the endpoints, without script or style: the policy for everything else forbids both."""
        why = _LEFT_OUT if self._backend.settings.page else _OFF
        rows = "\n".join(map(_row, self._endpoints))
        return HTMLResponse(
            "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>ckptd</title>\n"
            f"<h1>ckptd</h1>\n<p>{why}</p>\n<p>The catalog answers at these addresses:</p>\n"
            f"<dl>\n{rows}\n</dl>\n</html>\n",
            headers={"Cache-Control": "no-cache", "Vary": VARY},
        )


def _answer(request: Request, file: PageFile) -> Response:
    body, coding = file.body, "identity"
    if file.gzipped is not None and accepts_gzip(request):
        body, coding = file.gzipped, "gzip"
    etag = f'"{file.digest}-{coding}"'
    headers = {
        "ETag": etag,
        "Cache-Control": IMMUTABLE if file.is_immutable else "no-cache",
        "Vary": "Accept-Encoding",
    }
    if is_current(request, etag):
        return not_modified(headers)
    if coding == "gzip":
        headers["Content-Encoding"] = coding
    return Response(body, headers=headers | {"Content-Type": file.media_type})


def _row(endpoint: Endpoint) -> str:
    path = endpoint.path.removeprefix("/")  # relative: the page may lie under a prefix
    shown = f"{endpoint.method} {html.escape(endpoint.path)}"
    link = f'<a href="{path}">{shown}</a>' if endpoint.method == "GET" and "{" not in path else shown
    return f"<dt><code>{link}</code></dt><dd>{html.escape(endpoint.summary)}</dd>"
