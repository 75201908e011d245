"""The first page: says what this is and names the endpoints."""

import html
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .endpoint import Endpoint


class FirstPage:
    """A readable list of the endpoints, without script or style: the policy for pages forbids both."""

    def __init__(self) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()

    def shows(self, endpoints: Iterable[Endpoint]) -> None:
        """Show these."""
        self._endpoints = tuple(endpoint for endpoint in endpoints if endpoint.path != "/")

    async def index(self, _: Request) -> Response:
        """The page."""
        rows = "\n".join(map(_row, self._endpoints))
        return HTMLResponse(
            "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>ckptd</title>\n"
            "<h1>ckptd</h1>\n<p>A live catalog of PyTorch checkpoints. It answers at these addresses:</p>\n"
            f"<dl>\n{rows}\n</dl>\n</html>\n",
            headers={"Cache-Control": "no-cache"},
        )


def _row(endpoint: Endpoint) -> str:
    path = endpoint.path.removeprefix("/")  # relative: the page may lie under a prefix
    shown = f"{endpoint.method} {html.escape(endpoint.path)}"
    link = f'<a href="{path}">{shown}</a>' if endpoint.method == "GET" and "{" not in path else shown
    return f"<dt><code>{link}</code></dt><dd>{html.escape(endpoint.summary)}</dd>"
