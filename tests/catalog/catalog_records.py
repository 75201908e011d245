"""Records and changes for tests that are about the catalog, not about what is in a checkpoint."""

import datetime as dt

from ckptd.catalog.entry import CheckpointEntry, CheckpointId, Health, Identities, Record, checkpoint_id
from ckptd.catalog.store import Change, DeleteReason, Removal
from ckptd.validators.inspection import FileIdentity

ROOT = "/outputs"


def record_of(path: str, *, root: str = ROOT, modified_ns: int = 0, **fields: object) -> Record:
    """A record at `path`, with any entry field overridden."""
    raw = path.encode("utf-8", "surrogateescape")
    modified = dt.datetime.fromtimestamp(modified_ns / 1e9, dt.UTC)
    values: dict[str, object] = {
        "id": checkpoint_id(root, raw),
        "path": path,
        "root": root,
        "checkpoint_path": f"{root}/{path}",
        "display_name": path.rsplit("/", 1)[-1],
        "size_bytes": 1,
        "modified_at": modified.isoformat().replace("+00:00", "Z"),
        "health": Health.VALID,
    }
    return Record(
        entry=CheckpointEntry(**(values | fields)),  # type: ignore[arg-type]
        relative_path=raw,
        identities=Identities(FileIdentity(1, 1, modified_ns, modified_ns)),
        modified_ns=modified_ns,
    )


def put(record: Record) -> Change:
    """The change that makes `record` current."""
    return Change(record.entry.id, lambda _: record)


def drop(path: str, *, root: str = ROOT, reason: DeleteReason = DeleteReason.REMOVED) -> Change:
    """The change that removes what is at `path`."""
    gone = id_at(path, root=root)
    return Change(gone, lambda _: Removal(gone, reason))


def id_at(path: str, *, root: str = ROOT) -> CheckpointId:
    """The id of a path."""
    return checkpoint_id(root, path.encode("utf-8", "surrogateescape"))
