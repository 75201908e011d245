"""The endpoints of existing studios: their paths, their field names, a bare array, newest first."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ckptd.catalog.entry import CheckpointEntry, Record
from ckptd.catalog.query import Page

from . import sse
from .checkpoints import CheckpointRoutes, ending_stream
from .parameters import parse_compatible, parse_stream
from .responses import accepts_gzip

_BYTES_PER_MB = 1 << 20


class CompatEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint as those studios know it; field order is theirs. What is not known is null."""

    display_name: str
    checkpoint_path: str
    modified_at: str
    """RFC 3339, UTC."""
    size_mb: float
    """In 2^20 bytes, two decimals."""
    exp_name: str | None
    architecture: str | None
    backbone: str | None
    epoch: int | None
    global_step: int | None
    precision: float | None
    recall: float | None
    hmean: float | None


class CompatRoutes:
    """`/api/inference/checkpoints`, its `/stream`, and `/api/v1/checkpoints`."""

    def __init__(self, checkpoints: CheckpointRoutes) -> None:
        self._checkpoints = checkpoints

    async def list(self, request: Request) -> Response:
        """The newest `limit` as a bare array; with `page`, one page in the envelope of `/checkpoints`."""
        render = _enveloped if "page" in request.query_params else _bare
        return await self._checkpoints.listed(request, parse_compatible, render)

    async def stream(self, request: Request) -> Response:
        """As `/checkpoints/stream`, with these field names."""
        query, batch_size = parse_stream(request.query_params)
        page = await self._checkpoints.page(query)
        return ending_stream(page, batch_size, _batch, gzip=accepts_gzip(request))


def compat_entry(entry: CheckpointEntry) -> CompatEntry:
    """An entry in the terms of existing studios."""
    return CompatEntry(
        display_name=entry.display_name,
        checkpoint_path=entry.checkpoint_path,
        modified_at=entry.modified_at,
        size_mb=round(entry.size_bytes / _BYTES_PER_MB, 2),
        exp_name=entry.exp_name,
        architecture=entry.architecture,
        backbone=entry.backbone,
        epoch=entry.epoch,
        global_step=entry.global_step,
        precision=entry.metrics.get("precision"),
        recall=entry.metrics.get("recall"),
        hmean=entry.metrics.get("hmean"),
    )


def _bare(page: Page) -> bytes:
    return _encode([compat_entry(record.entry) for record in page.records])


def _enveloped(page: Page) -> bytes:
    return _encode(
        {
            "checkpoints": [compat_entry(record.entry) for record in page.records],
            "total": page.total,
            "page": page.page,
            "page_size": page.page_size,
            "total_pages": page.total_pages,
            "revision": page.revision,
        }
    )


def _batch(records: Sequence[Record], *, has_more: bool) -> bytes:
    return sse.batch_of([_encode(compat_entry(record.entry)) for record in records], has_more=has_more)


_encode = msgspec.json.Encoder().encode
