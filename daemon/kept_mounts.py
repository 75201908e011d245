"""KeptMounts: what is known to be mounted where, root by root, kept in the state from one run to the next."""

from collections.abc import Iterable

import structlog

from ckptd.catalog.roots import Root
from ckptd.catalog.state import State, StateError

from .journal import Journal
from .mounts import MountTable


class KeptMounts:
    """One table a root."""

    def __init__(
        self, state: State, journal: Journal, roots: Iterable[Root], log: structlog.stdlib.BoundLogger
    ) -> None:
        """Load them. Blocks."""
        self._state = state
        self._journal = journal
        self._log = log
        self._saved: dict[Root, str] = {}
        self._tables = {root: self._load(root) for root in roots}

    def of(self, root: Root) -> MountTable:
        """What is mounted in one root."""
        return self._tables[root]

    async def save(self, root: Root, mounts: MountTable) -> None:
        """Keep what a sweep learned, where it is new."""
        text = mounts.render()
        if self._saved.get(root) == text:
            return
        try:
            await self._journal.write(lambda: self._state.set_meta(_name_of(root), text))
            self._saved[root] = text
        except StateError as error:
            self._log.warning("what is mounted could not be kept in the state", error=str(error))

    def _load(self, root: Root) -> MountTable:
        kept = self._state.get_meta(_name_of(root))
        return MountTable() if kept is None else MountTable.parse(kept)


def _name_of(root: Root) -> str:
    return f"mounts:{root.name}"
