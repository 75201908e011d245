"""Key: one path of one root, the unit of everything that is hinted, looked at and described."""

from typing import NamedTuple

from ckptd.catalog.entry import CheckpointId, checkpoint_id
from ckptd.catalog.roots import Root


class Key(NamedTuple):
    """One path of one root."""

    root: Root
    path: bytes

    @property
    def id(self) -> CheckpointId:
        """The slot in the catalog."""
        return checkpoint_id(self.root.name, self.path)
