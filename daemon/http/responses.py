"""Answers from bytes that exist already: conditional by ETag, compressed where asked."""

import hashlib

import anyio.to_thread
from isal import igzip
from starlette.requests import Request
from starlette.responses import Response

JSON = "application/json"
VARY = "Accept-Encoding, Authorization, Cookie"
"""What every answer with a body depends on."""
COMPRESS_FROM_BYTES = 1024
COMPRESS_IN_THREAD_FROM_BYTES = 1 << 20
"""Compressing more takes over a millisecond (isal: 0.4 ms for 434 KB); the live stream must not wait for it."""


def etag_of(request: Request, instance: str, revision: int) -> str:
    """The entity tag of an answer that depends on nothing but the query and the catalog's revision."""
    query = hashlib.blake2b(request.scope["query_string"], digest_size=6).hexdigest()
    encoding = "gzip" if accepts_gzip(request) else "identity"
    return f'"{instance}-{revision}-{query}-{encoding}"'


def is_current(request: Request, etag: str) -> bool:
    """Whether the client's copy is the answer that it would get (RFC 9110, 13.1.2: weak comparison)."""
    known = request.headers.get("if-none-match")
    if known is None:
        return False
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def accepts_gzip(request: Request) -> bool:
    """Whether the client asked for gzip."""
    return offers_gzip(request.headers.get("accept-encoding", ""))


def offers_gzip(accept_encoding: str) -> bool:
    """Whether a client that sent this header understands gzip (RFC 9110, 12.5.3)."""
    for offer in accept_encoding.split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False


async def json_response(request: Request, body: bytes, headers: dict[str, str]) -> Response:
    """`body` as JSON, compressed where asked and worth it."""
    return await body_response(request, body, headers, JSON)


async def body_response(request: Request, body: bytes, headers: dict[str, str], content_type: str) -> Response:
    """`body`, compressed where asked and worth it. `headers` may have a longer `Vary`."""
    headers = {"Vary": VARY} | headers
    if len(body) >= COMPRESS_FROM_BYTES and accepts_gzip(request):
        if len(body) >= COMPRESS_IN_THREAD_FROM_BYTES:
            body = await anyio.to_thread.run_sync(_compress, body)
        else:
            body = _compress(body)
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers | {"Content-Type": content_type})


def not_modified(headers: dict[str, str]) -> Response:
    """304, with the headers that the full answer would have had."""
    return Response(status_code=304, headers={"Vary": VARY} | headers)


def _compress(body: bytes) -> bytes:
    # Level 1: 6 times faster than zlib's; mtime 0 keeps equal answers equal.
    return igzip.compress(body, compresslevel=1, mtime=0)
