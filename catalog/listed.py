"""ListedFiles: files beneath a root as a walk has just listed them, so that absent names cost no system call."""

import collections
import os
import stat
from collections.abc import Collection, Sequence

from .directories import directories_above
from .experiment import (
    SIDECAR_SUFFIXES,
    STEM_CONFIGS,
    Companions,
    DirectFiles,
    find_companions,
    run_failed,
    shared_files,
    with_run_files,
)
from .file_names import stem_of
from .run_files import RunFiles

NAMES_KEPT = 200_000
"""Names in remembered directories, the latest ones; about 100 bytes each. Those of the directory that is walked, and of
the ones above it, come on top: each of its checkpoints asks for them again."""
STATUSES_KEPT = 20_000


class ListedFiles(DirectFiles):
    """A view that remembers listings and statuses. Made for one walk and thrown away with it.

    It answers as `DirectFiles` would have at some moment of the walk.
    """

    def __init__(self, root_fd: int) -> None:
        super().__init__(root_fd)
        self._listings: collections.OrderedDict[bytes, frozenset[bytes] | None] = collections.OrderedDict()
        self._names = 0
        self._spared: frozenset[bytes] = frozenset()
        """The directory that is walked, and those above it."""
        self._statuses: dict[bytes, os.stat_result | None] = {}
        self._shared: dict[bytes, tuple[RunFiles, bool]] = {}

    def remember(self, directory: bytes, names: Collection[bytes]) -> None:
        """Take over a listing that somebody made anyway, of the directory that is walked from now on."""
        self._spared = frozenset((directory, *directories_above(directory), b""))
        self._keep(directory, frozenset(names))

    def names_of(self, directory: bytes) -> frozenset[bytes]:
        """The names in a directory, as a set; empty where it does not exist or is a link."""
        return self._listing(directory) or frozenset()

    def names(self, relative_directory: bytes) -> Sequence[bytes]:
        """As `Files.names`."""
        listing = self._listing(relative_directory)
        return super().names(relative_directory) if listing is None else tuple(listing)

    def status(self, relative_path: bytes) -> os.stat_result | None:
        """As `Files.status`."""
        directory, _, name = relative_path.rpartition(b"/")
        listing = self._listing(directory)
        if listing is not None and name not in listing:
            return None
        if relative_path not in self._statuses:
            if len(self._statuses) >= STATUSES_KEPT:
                self._statuses.clear()
            self._statuses[relative_path] = super().status(relative_path)
        return self._statuses[relative_path]

    def companions(self, relative_path: bytes) -> Companions:
        """As `find_companions`, but what all checkpoints of a directory share is found once: five times as fast.

        Raises:
            OSError: the disk could not say.
        """
        directory, _, name = relative_path.rpartition(b"/")
        listing = self._listing(directory)
        if listing is None:
            return find_companions(self, relative_path)
        prefix = directory + b"/" if directory else b""
        stem = stem_of(name)
        bases = (name,) if stem == name else (name, stem)
        sidecars = [base + end for end in SIDECAR_SUFFIXES for base in bases if base + end in listing]
        configs = (stem + end for end in STEM_CONFIGS if stem + end in listing)
        shared, failed = self._shared_by(directory)
        own = Companions(
            sidecars=tuple(prefix + name for name in sidecars if self._is_file(prefix + name)),
            config=next((prefix + name for name in configs if self._is_file(prefix + name)), None),
            run_failed=failed,
        )
        return with_run_files(self, relative_path, shared, own)

    def _shared_by(self, directory: bytes) -> tuple[RunFiles, bool]:
        if directory not in self._shared:
            if len(self._shared) >= STATUSES_KEPT:
                self._shared.clear()
            self._shared[directory] = shared_files(self, directory), run_failed(self, directory)
        return self._shared[directory]

    def _is_file(self, path: bytes) -> bool:
        status = self.status(path)
        return status is not None and stat.S_ISREG(status.st_mode)

    def _listing(self, directory: bytes) -> frozenset[bytes] | None:
        """The names in a directory; None where only the disk itself can tell (a link, or beneath one)."""
        unknown: list[bytes] = []
        nearest = directory
        while nearest not in self._listings:
            unknown.append(nearest)
            if not nearest:
                break
            nearest = nearest.rpartition(b"/")[0]
        listing = self._listings.get(nearest)
        if nearest in self._listings:
            self._listings.move_to_end(nearest)
        for path in reversed(unknown):
            if path and listing is None:
                return None
            if path and listing is not None and path.rpartition(b"/")[2] not in listing:
                return frozenset()
            listing = self._keep(path, self._read(path))
        return listing

    def _read(self, directory: bytes) -> frozenset[bytes] | None:
        names = super().names(directory)
        return frozenset(names) if names else None

    def _keep(self, directory: bytes, names: frozenset[bytes] | None) -> frozenset[bytes] | None:
        self._names -= self._size_of(directory)
        self._listings[directory] = names
        self._names += self._size_of(directory)
        spared = sum(map(self._size_of, self._spared))
        while self._names - spared > NAMES_KEPT:
            oldest = next((each for each in self._listings if each not in self._spared and each != directory), None)
            if oldest is None:
                break
            self._names -= self._size_of(oldest)
            del self._listings[oldest]
        return names

    def _size_of(self, directory: bytes) -> int:
        return len(self._listings[directory] or ()) + 1 if directory in self._listings else 0
