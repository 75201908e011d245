"""Aliases: which links lead to which checkpoint; a link's entry shows its target and follows the target's changes."""

from collections.abc import Callable, Iterable

from ckptd.catalog.entry import CheckpointId, Record
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Batch, Catalog, Tombstone, id_of

from .key import Key


class Aliases:
    """Follows the catalog: whenever a target is published, its links are hinted."""

    def __init__(self, catalog: Catalog, roots: Iterable[Root], hint: Callable[[Iterable[Key]], None]) -> None:
        self._roots = {root.name: root for root in roots}
        self._hint = hint
        self._aliases: dict[CheckpointId, dict[CheckpointId, Key]] = {}
        self._targets: dict[CheckpointId, CheckpointId] = {}
        catalog.on_publish(self._follow)
        # One look at each: 100,000 calls would keep the event loop for a fifth of a second.
        for record in [record for record in catalog if record.entry.alias_of is not None]:
            self._note(record)

    def of(self, target: CheckpointId) -> list[Key]:
        """The links that lead to a checkpoint."""
        return list(self._aliases.get(target, {}).values())

    def _follow(self, batch: Batch) -> None:
        for item in batch.items:
            if not isinstance(item, Tombstone):
                self._note(item)
            elif item.id in self._targets:
                self._forget(item.id)
            aliases = self._aliases.get(id_of(item))
            if aliases:
                self._hint(list(aliases.values()))

    def _note(self, record: Record) -> None:
        entry = record.entry
        if record.identities.link is not None and entry.alias_of is None:
            return  # dangling: it still leads to where it led, and that may come back
        if entry.id in self._targets:
            self._forget(entry.id)
        root = self._roots.get(entry.root)
        if entry.alias_of is not None and root is not None:
            self._targets[entry.id] = entry.alias_of
            self._aliases.setdefault(entry.alias_of, {})[entry.id] = Key(root, record.relative_path)

    def _forget(self, alias: CheckpointId) -> None:
        target = self._targets.pop(alias)
        del self._aliases[target][alias]
        if not self._aliases[target]:
            del self._aliases[target]
