"""Backend: what the HTTP layer asks of the service; the only thing that it knows of it."""

import enum
from typing import Protocol

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId
from ckptd.catalog.matching import Lines
from ckptd.catalog.store import Catalog

from ..metrics import Metrics
from ..settings import Settings
from ..status import Status
from .events import EventHub


class RebuildMode(enum.StrEnum):
    """How much of what is known a rebuild trusts."""

    SWEEP = "sweep"
    """Look at the whole tree; files whose identity is unchanged are not read again."""
    FULL = "full"
    """Read every checkpoint again, and accept the filesystems as they are mounted now."""


class Backend(Protocol):
    """The service as seen from HTTP. Everything is called on the event loop's thread."""

    catalog: Catalog
    lines: Lines | None
    """What is searched besides entries; None: nothing."""
    settings: Settings
    hub: EventHub
    """The live stream; the service runs and closes it."""
    metrics: Metrics

    def status(self) -> Status:
        """A consistent picture of the service now."""
        ...

    async def description(self, checkpoint_id: CheckpointId) -> Description | None:
        """The stored description behind an entry, tensors included; None where none is kept."""
        ...

    def request_rebuild(self, mode: RebuildMode) -> str:
        """Start a rebuild, or join the one of the same mode that has not begun; returns its token.

        The live stream says `rebuilt {token, revision}` when it is done.
        """
        ...
