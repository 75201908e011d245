"""The first page: says what this is and names the endpoints."""

import html

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_ENDPOINTS = (
    ("GET", "checkpoints", "one page of the catalog, newest first; filter, sort and search by parameters"),
    ("GET", "checkpoints/{id}", "everything known of one checkpoint, with its findings and what to do about them"),
    ("GET", "checkpoints/{id}/tensors", "its tensor table"),
    ("GET", "checkpoints/stream", "the list as server-sent events that end"),
    ("GET", "checkpoints/events", "the live stream: a snapshot, then every change"),
    ("POST", "rebuild?mode=sweep|full", "look at the whole tree again"),
    ("GET", "health", "the process answers"),
    ("GET", "health/checkpoints", "how far the catalog can be trusted, and why"),
    ("GET", "metrics", "metrics for Prometheus"),
)


async def index(_: Request) -> Response:
    """A readable list of the endpoints, without script or style: the policy for pages forbids both."""
    rows = "\n".join(_row(*endpoint) for endpoint in _ENDPOINTS)
    return HTMLResponse(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>ckptd</title>\n"
        "<h1>ckptd</h1>\n<p>A live catalog of PyTorch checkpoints. It answers at these addresses:</p>\n"
        f"<dl>\n{rows}\n</dl>\n</html>\n",
        headers={"Cache-Control": "no-cache"},
    )


def _row(method: str, path: str, text: str) -> str:
    shown = f"{method} /{html.escape(path)}"
    link = f'<a href="{path}">{shown}</a>' if method == "GET" and "{" not in path else shown
    return f"<dt><code>{link}</code></dt><dd>{html.escape(text)}</dd>"
