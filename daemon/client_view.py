"""View: what a watch has told so far, so that a new snapshot is told as its difference and nothing is ever missed."""

from collections.abc import Iterable, Iterator

import msgspec

from ckptd.catalog.entry import CheckpointEntry, Revision, encode_entry

from .client_events import Event, Gone, Message
from .client_types import Change, ChangeKind


class View:
    """The state of one watch, over all its connections."""

    def __init__(self, last_event_id: str | None = None, known: Iterable[CheckpointEntry] = ()) -> None:
        """Args:
        last_event_id: the cursor to begin with.
        known: entries that the reader has already, from an earlier watch.
        """
        self.event_id = last_event_id or ""
        """What was delivered last; the next connection goes on behind it."""
        self._told: dict[str, int] = {entry.id: _content(entry) for entry in known}
        """Of every entry that was told and not deleted since: a hash of what it says. Not its revision: those begin
        again when a daemon has lost its state."""
        self._shadow: dict[str, CheckpointEntry] | None = None
        """A snapshot on its way that replaces what was told. Nothing of it is told before it is whole."""

    def interrupted(self) -> None:
        """The connection ended; half a snapshot is worth nothing."""
        self._shadow = None

    def apply(self, event: Event, message: Message) -> Iterator[Change]:
        """The changes that an event means.

        Each has the cursor that is good once it has been worked off: of several in one event only the last one has that
        of the event.
        """
        changes = self._changes(message)
        waiting = next(changes, None)
        before = None if message.type in ("batch", "complete") else self.event_id or None
        for change in changes:
            assert waiting is not None
            yield msgspec.structs.replace(waiting, event_id=before)
            waiting = change
        self.event_id = event.id
        if waiting is not None:
            yield msgspec.structs.replace(waiting, event_id=self.event_id or None)

    def _changes(self, message: Message) -> Iterator[Change]:
        match message.type:
            case "reset":
                # A first snapshot is told as it comes: there is nothing that it could contradict.
                self._shadow = {} if self._told else None
            case "batch" if self._shadow is not None:
                self._shadow |= {entry.id: entry for entry in message.entries()}
            case "batch" | "upsert":
                yield from map(self._upsert, message.entries())
            case "complete":
                yield from self._difference()
                yield Change(kind=ChangeKind.SYNCED, revision=message.revision)
            case "resumed":
                yield Change(kind=ChangeKind.SYNCED, revision=message.revision)
            case "delete":
                for gone in message.gone():
                    yield from self._delete(gone)

    def _difference(self) -> Iterator[Change]:
        snapshot, self._shadow = self._shadow, None
        if snapshot is None:
            return
        for gone in [known for known in self._told if known not in snapshot]:
            del self._told[gone]
            yield Change(kind=ChangeKind.DELETE, id=gone, reason="absent")
        for entry in snapshot.values():
            if self._told.get(entry.id) != _content(entry):
                yield self._upsert(entry)

    def _upsert(self, entry: CheckpointEntry) -> Change:
        self._told[entry.id] = _content(entry)
        return Change(kind=ChangeKind.UPSERT, id=entry.id, entry=entry)

    def _delete(self, gone: Gone) -> Iterator[Change]:
        known = self._told.pop(gone.id, None)
        # Under a filter the stream deletes what never matched; that is news only to one that may have known it.
        if known is not None or gone.reason != "filtered":
            yield Change(kind=ChangeKind.DELETE, id=gone.id, reason=gone.reason)


def _content(entry: CheckpointEntry) -> int:
    return hash(encode_entry(msgspec.structs.replace(entry, revision=Revision(0))))
