"""Descriptions, batches and open states for the tests of the daemon's memory on disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ckptd.catalog.description import CheckpointMetadata, Description
from ckptd.catalog.entry import CheckpointId
from ckptd.catalog.state import Loaded, State
from ckptd.catalog.store import Batch, Catalog, Change
from ckptd.catalog.verification import Verification
from ckptd.validators.inspection import FileIdentity, Inspection, TensorInfo
from tests.catalog.catalog_records import id_at

BOOT = "boot-1"


def description_of(name: str, *, tensors: int = 2) -> Description:
    """A description that can be told from others by its experiment name."""
    table = tuple(
        TensorInfo(f"state_dict.layer.{n}.weight", "float32", (3, 4), (4, 1), str(n), 0, 48, "weights")
        for n in range(tensors)
    )
    inspection = Inspection(checkpoint_path=f"/outputs/{name}", identity=FileIdentity(1, 2, 3, 4), tensors=table)
    return Description(inspection=inspection, findings=(), metadata=CheckpointMetadata(exp_name=name))


def name_of(description: Description | None) -> str | None:
    """The name that `description_of` was given."""
    return None if description is None else description.metadata.exp_name


class Run:
    """A state and the catalog that was loaded from it, as the daemon has them."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.loaded: Loaded = state.load()
        self.catalog = Catalog(self.loaded.instance, lambda: 1000.0)
        self.catalog.load(self.loaded.records, self.loaded.tombstones, self.loaded.revision, self.loaded.floor)

    def change(self, *changes: Change, descriptions: Mapping[CheckpointId, Description] | None = None) -> None:
        """Prepare, commit, publish."""
        batch = self.catalog.prepare(changes)
        assert batch is not None
        self.state.commit(batch, descriptions or {}, self.catalog.floor)
        self.catalog.publish(batch)

    def verify(self, path: str, verification: Verification) -> None:
        """Keep a verification of what is listed at `path`, as the journal does where nothing else changes."""
        batch = Batch((), self.catalog.revision)
        self.state.commit(batch, {}, self.catalog.floor, verifications={id_at(path): verification})

    def paths(self) -> set[str]:
        """What the catalog lists."""
        return {record.entry.path for record in self.catalog}


@contextmanager
def running(directory: object, *, boot_id: str = BOOT, clean: bool = True) -> Iterator[Run]:
    """One run of the daemon on a state directory, ended in the named way."""
    state = State.open(str(directory), boot_id=boot_id, clock=lambda: 1_700_000_000.0)
    try:
        yield Run(state)
    finally:
        state.close(clean=clean)
