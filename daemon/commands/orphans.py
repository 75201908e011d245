"""Orphans: sidecars whose checkpoint is gone; ours can be found out again, a person's are kept as `.bak`."""

import enum
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ckptd.catalog.backups import set_aside
from ckptd.catalog.entry import shown_path
from ckptd.catalog.experiment import SIDECAR_SUFFIXES, is_companion_name, is_sidecar_name
from ckptd.catalog.file_names import CHECKPOINT_SUFFIXES
from ckptd.catalog.placing import opened_directory, read_regular
from ckptd.catalog.roots import Root
from ckptd.catalog.sidecar import author_of, remove_sidecar

from .targets import opened


class OrphanOutcome(enum.StrEnum):
    """What became of an orphan."""

    FOUND = "orphan"
    REMOVED = "removed"
    SET_ASIDE = "set aside"
    """Renamed to `.bak`: a person wrote it."""
    FAILED = "failed"


class Orphan(NamedTuple):
    """One sidecar without a checkpoint."""

    root: Root
    path: bytes
    """Relative to the root."""
    author: str
    """`ckptd`, `training` or `person`."""
    outcome: OrphanOutcome = OrphanOutcome.FOUND
    detail: str = ""

    @property
    def absolute(self) -> bytes:
        """Where it is."""
        return self.root.join(self.path)


def find_orphans(candidates: Iterable[tuple[Root, bytes]]) -> Iterator[Orphan]:
    """Those that really are: beside them lies nothing that they could be about, of whatever suffix."""
    for root, path in candidates:
        with opened(root) as root_fd:
            try:
                found = _judged(root, root_fd, path)
            except OSError:  # its directory cannot be read any more, so nothing is known
                continue
        if found is not None:
            yield found


def remove_orphan(orphan: Orphan) -> Orphan:
    """Remove it if ckptd or a training wrote it, else rename it to `.bak`; after one more look."""
    with opened(orphan.root) as root_fd:
        try:
            now = _judged(orphan.root, root_fd, orphan.path)
            if now is None:
                return orphan._replace(detail="it has a checkpoint again, or is gone")
            if now.author == "ckptd" and remove_sidecar(root_fd, orphan.path):
                return now._replace(outcome=OrphanOutcome.REMOVED)
            backup = set_aside(root_fd, orphan.path)
        except OSError as error:
            return orphan._replace(outcome=OrphanOutcome.FAILED, detail=error.strerror or str(error))
    shown = shown_path(os.path.basename(backup))[0]
    return now._replace(outcome=OrphanOutcome.SET_ASIDE, detail=f"it is {shown} now")


def _judged(root: Root, root_fd: int, path: bytes) -> Orphan | None:
    directory, name = os.path.split(path)
    with opened_directory(root_fd, directory) as directory_fd:
        names = [os.fsencode(each) for each in os.listdir(directory_fd)]
        if name not in names or _has_subject(name, names):
            return None
        data = read_regular(directory_fd, name)
    author = None if data is None else author_of(data)
    return Orphan(root, path, "person" if author is None else author.name.lower())


def _has_subject(sidecar: bytes, names: Iterable[bytes]) -> bool:
    """Whether something lies there that a sidecar may be about: `best`, `best.ckpt`, `best.bin`, `best.pth.tar`."""
    base = next(sidecar[: -len(end)] for end in SIDECAR_SUFFIXES if sidecar.endswith(end))
    if base.endswith(CHECKPOINT_SUFFIXES):
        return base in names
    return any(
        name == base or (name.startswith(base + b".") and not is_sidecar_name(name) and not _is_about(name))
        for name in names
    )


def _is_about(name: bytes) -> bool:
    """Whether a file is itself about a checkpoint: a config, a backup of a sidecar."""
    return is_companion_name(name) or b".metadata.yaml.bak" in name or b".metadata.json.bak" in name
