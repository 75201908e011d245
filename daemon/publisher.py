"""Publisher: what a look means for the catalog, told through the journal, and then to what lies beside the file."""

import collections
import contextlib
from collections.abc import Callable, Collection, Iterator

import anyio
import anyio.to_thread
import msgspec

from ckptd.catalog.description import Description
from ckptd.catalog.entry import Health, Record, make_record, metadata_source
from ckptd.catalog.store import Catalog, Change, DeleteReason, Removal
from ckptd.catalog.verification import Verification, apply

from .journal import Journal
from .key import Key
from .look import Sight
from .lookout import Seen
from .moves import Moves
from .settle import Verdict
from .sidecars import SidecarWriter, keep_state_metadata


class Publisher:
    """Publishes the outcomes of looks, and knows which are not visible yet."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        journal: Journal,
        sidecars: SidecarWriter,
        moves: Moves,
        recall: Callable[[Key, Sight, Record | None], Verification | None],
    ) -> None:
        """Args:
        moves: where files that left their places were seen.
        recall: what is known of the bytes of a file that is described anew; called in a thread.
        """
        self._catalog = catalog
        self._journal = journal
        self._sidecars = sidecars
        self._moves = moves
        self._recall = recall
        self._under_way: collections.Counter[Key] = collections.Counter()
        self.removed = 0
        """Entries that were removed since the start."""

    @property
    def under_way(self) -> Collection[Key]:
        """Paths with looks that ended, and whose outcome is not visible yet."""
        return self._under_way.keys()

    async def publish(self, key: Key, seen: Seen, description: Description, verdict: Verdict) -> None:
        """Publish what is at a path; returns when it is visible."""
        sight = seen.sight
        with self._not_visible_yet(key):
            while True:
                record = _record(key, sight, _with_verification(description, seen), verdict)
                attempt = _Attempt(record, seen.known)
                self._moves.publishing(key.id)
                await self._journal.submit(Change(key.id, attempt.decide), description)
                if not attempt.overtaken:
                    break
                known = self._catalog.get(key.id)
                seen = Seen(sight, known, await anyio.to_thread.run_sync(self._recall, key, sight, known))
        if _became_a_link(seen.known, record):
            assert seen.known is not None
            await self._sidecars.checkpoint_gone(key.root, seen.known)  # what it describes is gone; links have none
        if verdict is Verdict.WHOLE:
            self._sidecars.consider(key.root, record, description.sidecar, outdated=description.outdated)

    async def remove(self, key: Key) -> None:
        """Publish that nothing is at a path any more, and remove our sidecar of it."""
        gone: list[Record] = []

        def decide(current: Record | None) -> Removal | None:
            # Decided when its turn comes: news of the file may be on its way, and then there is something to remove.
            if current is None:
                return None
            gone.append(current)
            moved_to = self._moves.place_of(current.identities, key.id)
            return Removal(key.id, DeleteReason.REMOVED if moved_to is None else DeleteReason.MOVED, moved_to)

        await self._submit(key, Change(key.id, decide))
        for record in gone:
            self.removed += 1
            await self._sidecars.checkpoint_gone(key.root, record)

    async def offline(self, key: Key) -> None:
        """Publish that a path cannot be reached; what is known of it stays."""
        await self._submit(key, Change(key.id, _offline))

    async def _submit(self, key: Key, change: Change) -> None:
        with self._not_visible_yet(key):
            await self._journal.submit(change)

    @contextlib.contextmanager
    def _not_visible_yet(self, key: Key) -> Iterator[None]:
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]


class _Attempt:
    """To publish a record that was made from what was known at the beginning of a look."""

    def __init__(self, record: Record, known: Record | None) -> None:
        self._record = record
        self._known = known
        self.overtaken = False
        """There was other news of the same file meanwhile: its bytes may have been verified."""

    def decide(self, current: Record | None) -> Record | None:
        file = self._record.identities.file
        if current is not None and current is not self._known and current.identities.file == file:
            self.overtaken = True
            return None
        return keep_state_metadata(current, self._record)


def _with_verification(description: Description, seen: Seen) -> Description:
    if seen.verification is None or seen.sight.identities is None:
        return description
    return apply(description, seen.verification, shards=seen.sight.identities.shards)


def _record(key: Key, sight: Sight, description: Description, verdict: Verdict) -> Record:
    assert sight.identities is not None
    if verdict is Verdict.WRITING:
        health = Health.WRITING
    elif description.inspection.is_valid and sight.unreadable is None:
        health = Health.VALID
    else:
        health = Health.INVALID
    return make_record(
        key.root,
        key.path,
        description,
        health,
        identities=msgspec.structs.replace(sight.identities, file=description.inspection.identity),
        metadata_source=metadata_source(description.sidecar),
        alias_of=sight.alias_of,
    )


def _became_a_link(known: Record | None, record: Record) -> bool:
    return known is not None and known.identities.link is None and record.identities.link is not None


def _offline(current: Record | None) -> Record | None:
    if current is None or current.entry.health is Health.OFFLINE:
        return None
    return msgspec.structs.replace(current, entry=msgspec.structs.replace(current.entry, health=Health.OFFLINE))
