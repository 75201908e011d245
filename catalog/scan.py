"""Walking a tree: every checkpoint with the identities of the files behind it, and everything that stood in the way."""

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Sequence

import msgspec

from ckptd.validators.formats.sharded import LATEST, claim
from ckptd.validators.inspection import FileIdentity
from ckptd.validators.reader import identity_of

from .directories import Claims, Listing, has_latest, is_hidden, list_beneath, list_directory
from .entry import Identities
from .experiment import Companions, DirectFiles, checkpoints_of_sidecar, find_companions, is_sidecar_name
from .links import Link, kind_of, resolve_link
from .listed import ListedFiles
from .opening import companions_identities
from .roots import DEFAULT_SUFFIXES, Root, is_checkpoint_name
from .temporary import is_temporary_name

NOTED = 1000
"""Orphans, leftovers and odd names that are listed; more are only counted."""
LINK_DEPTH = 4
"""Directory links that are followed within one another."""
PROGRESS_DIRECTORIES = 256
"""Directories between two calls of `on_progress`."""

_GONE = frozenset((errno.ENOENT, errno.ENOTDIR))
_DANGLING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SIDECAR_OF_OURS = b".metadata.yaml"


class Found(msgspec.Struct, frozen=True):
    """One checkpoint as the tree shows it."""

    path: bytes
    """Relative to the root. Of a checkpoint that is a directory: the directory's."""
    identities: Identities
    """As `opening.open_checkpoint` makes them. A dangling link has its own as `file`."""
    device: int
    """`st_dev` of the file or directory."""
    link: Link | None = None


class MountPoint(msgspec.Struct, frozen=True):
    """A filesystem that was met."""

    device: int
    """`st_dev`; changes when it is mounted anew."""
    fsid: int
    """`f_fsid` of statvfs(3): often stays with the filesystem; 0 where it has none."""


class Scan(msgspec.Struct):
    """What a walk found. Paths are relative to the root."""

    found: list[Found] = []
    checkpoints: int = 0
    directories: int = 0
    unreachable: dict[bytes, OSError] = {}
    """Directories that could not be listed, and files that could not be looked at: nothing is known beneath them."""
    mounts: dict[bytes, MountPoint] = {}
    """The root (or subtree) itself, and each directory where another filesystem begins."""
    skipped_links: int = 0
    """Links out of the roots whose targets are not allowed, and links nested too deep."""
    odd: dict[bytes, str] = {}
    """What has a checkpoint's name and is none: directories, FIFOs, sockets, devices; and directories too deep to be
    named. At most `NOTED`."""
    orphans: list[bytes] = []
    """Sidecars, as ckptd names them, without a checkpoint. At most `NOTED`; whose they are is for others to say."""
    leftovers: list[bytes] = []
    """Temporary files of ckptd. At most `NOTED`; whether they are abandoned is for others to say."""
    stopped: bool = False
    """`should_stop` ended it early."""


def scan_tree(
    root: Root,
    root_fd: int,
    *,
    subtree: bytes = b"",
    suffixes: Sequence[str] = DEFAULT_SUFFIXES,
    roots: Sequence[Root] = (),
    follow_links: Sequence[bytes] = (),
    on_found: Callable[[Found], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    noted: int = NOTED,
) -> Scan:
    """Walk a root, or a subtree of it. Blocks; nothing is opened but directories.

    A directory that a sharded format claims is one checkpoint, whatever its name; nothing in it is listed. A subtree
    inside such a directory stands for that directory. The root itself is never claimed.

    A name that is missing is missing: whatever could not be asked is in `unreachable`, with its reason.
    What changes meanwhile may be seen before or after the change.

    Args:
        root: the tree.
        root_fd: the opened root; all is looked up from here, so a root that is replaced meanwhile is not mixed up.
        subtree: relative directory; one that does not exist holds nothing.
        suffixes: of names that are checkpoints.
        roots: all roots, for links from one into another; `root` alone by default.
        follow_links: absolute, resolved directories outside the roots into which links may lead.
        on_found: called with each checkpoint instead of collecting it in `Scan.found` (0.8 KB each).
        on_progress: called now and then with the numbers of directories and checkpoints so far.
        should_stop: asked after each directory.
        noted: how many orphans and leftovers are listed.
    """
    walk = _Walk(root, root_fd, suffixes, roots or (root,), follow_links, on_found, noted)
    with contextlib.closing(walk):
        walk.begin(subtree)
        while walk.step():
            if should_stop is not None and should_stop():
                walk.scan.stopped = True
                break
            if on_progress is not None and walk.scan.directories % PROGRESS_DIRECTORIES == 0:
                on_progress(walk.scan.directories, walk.scan.checkpoints)
    return walk.scan


class _Pending(msgspec.Struct, frozen=True):
    """A directory to be listed."""

    path: bytes
    parent_device: int | None
    links: tuple[tuple[int, int], ...] = ()
    """(device, inode) of the followed links' targets above."""
    is_link: bool = False
    beside_latest: bool = False
    """DeepSpeed's `latest` lies beside it."""
    dangling: frozenset[bytes] = frozenset()
    """Names in it that are links to nothing beneath the root: a sidecar of ours beside one describes what is gone."""


class _Walk:
    """The state of one walk: an explicit stack, so that no tree is too deep."""

    def __init__(
        self,
        root: Root,
        root_fd: int,
        suffixes: Sequence[str],
        roots: Sequence[Root],
        follow_links: Sequence[bytes],
        on_found: Callable[[Found], None] | None,
        noted: int,
    ) -> None:
        self.scan = Scan()
        self._noted = noted
        self._root = root
        self._root_fd = root_fd
        self._suffixes = tuple(suffixes)
        self._inside = [each.path for each in roots]
        self._allowed = list(follow_links)
        self._deliver = on_found or self.scan.found.append
        self._files = ListedFiles(root_fd)
        self._claims = Claims()
        self._elsewhere: dict[bytes, tuple[int, DirectFiles]] = {}
        self._stack: list[_Pending] = []

    def begin(self, subtree: bytes) -> None:
        try:
            status = os.stat(subtree or b".", dir_fd=self._root_fd, follow_symlinks=False)
        except OSError as error:
            if not subtree or error.errno not in _GONE:
                self.scan.unreachable[subtree] = error
            return
        if not subtree and not status.st_nlink:
            # A removed directory can still be listed through its descriptor, and is empty.
            self.scan.unreachable[b""] = FileNotFoundError(errno.ENOENT, "the root was removed", self._root.name)
        elif (holder := self._claims.holder(self._root_fd, subtree)) is not None:
            self._push(holder)
        elif stat.S_ISLNK(status.st_mode):
            self._begin_link(subtree)
        elif stat.S_ISDIR(status.st_mode):
            self._push(subtree)

    def _push(self, path: bytes) -> None:
        latest = has_latest(self._root_fd, os.path.dirname(path))
        self._stack.append(_Pending(path, None, beside_latest=latest))

    def _begin_link(self, path: bytes) -> None:
        try:
            if stat.S_ISDIR(os.stat(path, dir_fd=self._root_fd).st_mode):
                own = os.stat(path, dir_fd=self._root_fd, follow_symlinks=False)
                self._take_directory_link(path, own, _Pending(os.path.dirname(path), None))
        except OSError as error:
            if error.errno not in _DANGLING:
                self.scan.unreachable[path] = error

    def step(self) -> bool:
        """List one directory. False when there is none left."""
        if not self._stack:
            return False
        pending = self._stack.pop()
        try:
            self._list(pending)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self._note_odd(pending.path, "a directory whose path is longer than the system allows (4095 bytes)")
            elif error.errno not in _GONE or not pending.path:
                self.scan.unreachable[pending.path] = error
        return True

    def close(self) -> None:
        for fd, _ in self._elsewhere.values():
            os.close(fd)
        self._elsewhere.clear()

    # ---- directories ---------------------------------------------------------------------------------------

    def _list(self, pending: _Pending) -> None:
        flags = _DIRECTORY if pending.is_link else _DIRECTORY | os.O_NOFOLLOW
        fd = os.open(pending.path or b".", flags, dir_fd=self._root_fd)
        try:
            status = os.fstat(fd)
            if status.st_dev != pending.parent_device:
                self.scan.mounts[pending.path] = MountPoint(status.st_dev, os.fstatvfs(fd).f_fsid)
            here = _Pending(pending.path, status.st_dev, pending.links)
            self.scan.directories += 1
            with os.scandir(fd) as entries:
                listed = list(entries)
            # The names come first: what belongs to a checkpoint is looked up among them.
            names = [os.fsencode(entry.name) for entry in listed]
            name = os.path.basename(pending.path)
            if name and not pending.is_link:
                if claim(name, names, pending.beside_latest) is not None:
                    if not is_hidden(name):
                        self._take_directory(pending.path, list_directory(fd))
                    return
                if is_checkpoint_name(name, self._suffixes):
                    self._note_odd(pending.path, "a directory")
            self._take(here, listed, names)
        finally:
            os.close(fd)

    def _take_directory(self, path: bytes, listing: Listing) -> None:
        identities = self._identities(self._files, path, listing.identity, shards=listing.digest)
        self._found(Found(path, identities, listing.device))

    def _take(self, here: _Pending, entries: "list[os.DirEntry[str]]", names: list[bytes]) -> None:
        self._files.remember(here.path, names)
        prefix = here.path + b"/" if here.path else b""
        dangling = frozenset(
            name
            for name, entry in zip(names, entries, strict=True)
            if entry.is_symlink() and self._dangles(prefix + name)
        )
        here = msgspec.structs.replace(here, beside_latest=LATEST in names, dangling=dangling)
        for name, entry in zip(names, entries, strict=True):
            try:
                self._take_entry(prefix + name, name, entry, here)
            except OSError as error:
                if error.errno not in _GONE:
                    self.scan.unreachable[prefix + name] = error

    def _take_entry(self, path: bytes, name: bytes, entry: "os.DirEntry[str]", here: _Pending) -> None:
        named = is_checkpoint_name(name, self._suffixes)
        if entry.is_dir(follow_symlinks=False):
            self._stack.append(_Pending(path, here.parent_device, here.links, beside_latest=here.beside_latest))
        elif entry.is_symlink():
            self._take_link(path, name, entry, here)
        elif named:
            self._take_file(path, entry)
        else:
            self._take_other(path, name, here)

    def _take_file(self, path: bytes, entry: "os.DirEntry[str]") -> None:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            self._note_odd(path, kind_of(status.st_mode))
            return
        self._found(Found(path, self._identities(self._files, path, identity_of(status)), status.st_dev))

    def _take_other(self, path: bytes, name: bytes, here: _Pending) -> None:
        if name.endswith((b".tmp", b".swap")) and is_temporary_name(name):
            self._note(self.scan.leftovers, path)
        elif name.endswith(_SIDECAR_OF_OURS) and is_sidecar_name(name):
            names = self._files.names_of(here.path)
            candidates = checkpoints_of_sidecar(name, self._suffixes)
            if not any(candidate in names and candidate not in here.dangling for candidate in candidates):
                self._note(self.scan.orphans, path)

    # ---- links ---------------------------------------------------------------------------------------------

    def _dangles(self, path: bytes) -> bool:
        try:
            return self._files.status(path) is None
        except OSError:
            return False  # that is no absence

    def _take_link(self, path: bytes, name: bytes, entry: "os.DirEntry[str]", here: _Pending) -> None:
        named = is_checkpoint_name(name, self._suffixes)
        try:
            status = entry.stat(follow_symlinks=True)
        except OSError as error:
            if named and error.errno in _DANGLING:
                own = entry.stat(follow_symlinks=False)
                identity = identity_of(own)
                self._found(Found(path, Identities(identity, link=identity), own.st_dev, Link(None, None)))
            elif named or error.errno not in (*_DANGLING, errno.EACCES):
                self.scan.unreachable[path] = error
            return
        if stat.S_ISDIR(status.st_mode):
            self._take_directory_link(path, entry.stat(follow_symlinks=False), here)
        elif named and not stat.S_ISREG(status.st_mode):
            self._note_odd(path, f"a link to {kind_of(status.st_mode)}")
        elif named:
            self._alias(path, status, entry.stat(follow_symlinks=False))
        else:
            self._take_other(path, name, here)

    def _alias(self, path: bytes, status: os.stat_result, own: os.stat_result) -> None:
        link = self._resolve(path)
        if link is None or link.base is None or link.target is None:
            self.scan.skipped_links += 1
            return
        _, view = self._place(link.base)
        identities = self._identities(view, link.target, identity_of(status), identity_of(own))
        self._found(Found(path, identities, status.st_dev, link))

    def _take_directory_link(self, path: bytes, own: os.stat_result, here: _Pending) -> None:
        """A link to a checkpoint directory is one more name of it; any other directory is walked."""
        link = self._resolve(path)
        if link is None or not self._alias_directory(path, link, own):
            self._follow_directory(path, link, here)

    def _alias_directory(self, path: bytes, link: Link, own: os.stat_result) -> bool:
        if not link.base or not link.target:
            return False
        base_fd, view = self._place(link.base)
        try:
            if not self._claims.is_checkpoint(base_fd, link.target):
                return False
        except PermissionError:  # said of the directory itself, if it lies where it is walked
            return False
        listing = list_beneath(base_fd, link.target)
        identities = self._identities(view, link.target, listing.identity, identity_of(own), listing.digest)
        self._found(Found(path, identities, listing.device, link))
        return True

    def _follow_directory(self, path: bytes, link: Link | None, here: _Pending) -> None:
        """Push an allowed directory. One inside the roots is walked where it is, not here."""
        if link is not None and link.base in self._inside:
            return
        status = os.stat(path, dir_fd=self._root_fd)
        key = status.st_dev, status.st_ino
        if link is None or key in here.links or len(here.links) >= LINK_DEPTH:
            self.scan.skipped_links += 1
            return
        self._stack.append(_Pending(path, here.parent_device, (*here.links, key), is_link=True))

    def _resolve(self, path: bytes) -> Link | None:
        return resolve_link(self._root.join(path), self._inside, self._allowed)

    def _place(self, base: bytes) -> tuple[int, DirectFiles]:
        """A root or allowed directory that a link leads into: opened, and the files beneath it."""
        if base == self._root.path:
            return self._root_fd, self._files
        known = self._elsewhere.get(base)
        if known is None:
            fd = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            known = self._elsewhere[base] = fd, DirectFiles(fd)
        return known

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def _found(self, found: Found) -> None:
        self.scan.checkpoints += 1
        self._deliver(found)

    def _identities(
        self,
        files: DirectFiles,
        path: bytes,
        itself: FileIdentity,
        link: FileIdentity | None = None,
        shards: str | None = None,
    ) -> Identities:
        try:
            companions = files.companions(path) if isinstance(files, ListedFiles) else find_companions(files, path)
        except OSError:
            companions = Companions()  # its disk says so again when the checkpoint is looked at
        identities = companions_identities(itself, companions, functools.partial(_identity, files))
        return msgspec.structs.replace(identities, link=link, shards=shards)

    def _note(self, notes: list[bytes], path: bytes) -> None:
        if len(notes) < self._noted:
            notes.append(path)

    def _note_odd(self, path: bytes, what: str) -> None:
        if len(self.scan.odd) < NOTED:
            self.scan.odd[path] = what


def _identity(files: DirectFiles, path: bytes) -> FileIdentity | None:
    with contextlib.suppress(OSError):
        status = files.status(path)
        return None if status is None else identity_of(status)
    return None
