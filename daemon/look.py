"""One look at one path: what is there now, opened for a worker where it must be read. Runs in a thread.

Everything that touches the filesystem on behalf of one checkpoint happens here; what it means is decided by `settle`.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence

import msgspec

from ckptd.catalog.description import DescribeRequest, OpenedFiles, RedactionRules
from ckptd.catalog.directories import Claims, directories_above, is_hidden
from ckptd.catalog.entry import CheckpointId, Health, Identities, Record, checkpoint_id, shown_path
from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.opening import SCARCE, directory_identities, file_identities, open_checkpoint
from ckptd.catalog.roots import Root, is_checkpoint_name
from ckptd.validators.errors import Changed
from ckptd.validators.formats.sharded import is_member_name
from ckptd.validators.inspection import Seal
from ckptd.validators.reader import identity_of

from .settle import LookKind

READ_ERROR = "file.read_error"
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_NO_CHECKPOINT = (errno.EINVAL, errno.ENXIO, errno.EISDIR)
"""What `open_checkpoint` says of a FIFO or device, of a socket, and of a directory that no format claims."""

DeletionCheck = Callable[[bytes, bytes], bool]
"""(relative path, nearest existing directory) → whether the absence is a deletion (see `filesystems`)."""


class Opened(msgspec.Struct, frozen=True):
    """A checkpoint with its companions, opened and ready to be described."""

    request: DescribeRequest
    files: OpenedFiles
    identities: Identities
    writer: bool | None
    """Whether somebody has it open for writing; None where the system does not say."""

    def close(self) -> None:
        """Close every descriptor. Blocks while a disk does not answer."""
        _close(self.files)


class Place(msgspec.Struct, frozen=True):
    """A checkpoint directory that was seen and is to be opened: where its bytes are."""

    base: bytes
    """The root or allowed directory that holds it, absolute."""
    relative: bytes
    link: os.stat_result | None
    """Of the link that leads to it, where the path is one."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What a look saw."""

    kind: LookKind
    opened: Opened | None = None
    """Set where the checkpoint must be described."""
    unreadable: str | None = None
    """Why an existing checkpoint could not be opened; it is then described by its name alone."""
    code: str = "file.unreadable"
    """Finding code that goes with `unreadable`."""
    seal: Seal = Seal.SEALED
    """What is known of the wholeness of what is `unreadable`: by default there is nothing to wait for but a change."""
    place: Place | None = None
    """Set for a directory, which has many files and is opened by `open_directory` when descriptors are free for it."""
    request: DescribeRequest | None = None
    identities: Identities | None = None
    alias_of: CheckpointId | None = None
    postponed: str | None = None
    """Why nothing was seen that says anything of the path: no descriptor was free, or no memory."""
    skipped_link: bool = False
    """A link out of the roots that is not followed."""


class Viewer(msgspec.Struct, frozen=True, kw_only=True):
    """Looks at the paths of one root."""

    root: Root
    roots: Sequence[Root]
    suffixes: Sequence[str]
    allowed_targets: Sequence[bytes]
    """Directories outside the roots into which links may lead, absolute and resolved."""
    is_deletion: DeletionCheck
    is_directory: Callable[[bytes], bool] = lambda _: False
    """Whether a path of this root is listed as a checkpoint that is a directory. Called in any thread."""
    required_keys: tuple[str, ...] = ()
    """Keys or prefixes of keys that every state dict of this root must have."""
    redaction: RedactionRules | None = RedactionRules()
    """What nobody shall read in configs and hyper-parameters."""
    claims: Claims = msgspec.field(default_factory=Claims)

    def look(self, root_fd: int, path: bytes, known: Record | None, *, must_read: bool) -> Sight:
        """See what is at `path` now.

        Args:
            root_fd: the opened root.
            path: relative to the root.
            known: what the catalog holds of it.
            must_read: do not trust equal identities.
        """
        try:
            status = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
            beneath_link = _is_beneath_link(root_fd, path)
        except OSError as error:
            return self._absent(path) if error.errno in _NOT_THERE else Sight(kind=LookKind.UNREACHABLE)
        if beneath_link:
            return self._look_beneath_link(root_fd, path, status, known, must_read=must_read)
        if stat.S_ISLNK(status.st_mode):
            return self._look_at_link(root_fd, path, status, known, must_read=must_read)
        if stat.S_ISDIR(status.st_mode):
            return self._look_at_directory(path, Place(self.root.path, path, None), known, None, must_read=must_read)
        if not stat.S_ISREG(status.st_mode) or not self._is_listed_file(root_fd, path):
            return Sight(kind=LookKind.GONE)
        return self._open(root_fd, path, known, must_read=must_read)

    def absent_root(self, path: bytes) -> Sight:
        """What it means for `path` that its root cannot be opened because it does not exist."""
        return self._absent(path)

    def _absent(self, path: bytes) -> Sight:
        directory = self.root.join(path)
        while directory not in (b"", b"/"):
            directory = os.path.dirname(directory)
            try:
                os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError as error:
                if error.errno in _NOT_THERE:
                    continue
                return unreachable(error)
            break
        deleted = self.is_deletion(path, directory)
        return Sight(kind=LookKind.GONE if deleted else LookKind.UNREACHABLE)

    def _open(
        self,
        root_fd: int,
        path: bytes,
        known: Record | None,
        *,
        must_read: bool,
        link: os.stat_result | None = None,
        alias_of: CheckpointId | None = None,
    ) -> Sight:
        try:
            companions = find_companions(DirectFiles(root_fd), path)
            request, files, identities = open_checkpoint(root_fd, path, companions)
        except OSError as error:
            return self._unopened(root_fd, path, error, link, alias_of)
        if link is not None:
            identities = msgspec.structs.replace(identities, link=identity_of(link))
        if not must_read and known is not None and _is_settled(known) and known.identities.are_still(identities):
            _close(files)
            return Sight(kind=LookKind.UNCHANGED)
        shown = msgspec.structs.replace(
            request,
            checkpoint_path=shown_path(self.root.join(path))[0],
            required_keys=self.required_keys,
            redaction=self.redaction,
        )
        opened = Opened(shown, files, identities, _has_writer(shown, files))
        return Sight(kind=LookKind.SEEN, opened=opened, request=shown, identities=identities, alias_of=alias_of)

    def _unopened(
        self,
        root_fd: int,
        path: bytes,
        error: OSError,
        link: os.stat_result | None,
        alias_of: CheckpointId | None,
    ) -> Sight:
        if error.errno in _NO_CHECKPOINT:
            return Sight(kind=LookKind.GONE)
        if error.errno in _NOT_THERE and link is None:
            return self._absent(path)
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return unreachable(error)
        dangling = link is not None and error.errno in (*_NOT_THERE, errno.ELOOP)
        if dangling and not is_checkpoint_name(os.path.basename(path), self.suffixes):
            return Sight(kind=LookKind.GONE)
        try:
            identities = _dangling_identities(link) if dangling and link else _unopened_identities(root_fd, path, link)
        except OSError as refused:
            return unreachable(refused)
        return Sight(
            kind=LookKind.SEEN,
            unreadable=_why_dangling(error) if dangling else f"the file cannot be opened: {error.strerror}",
            code="link.dangling" if dangling else "file.unreadable",
            request=DescribeRequest(checkpoint_path=shown_path(self.root.join(path))[0], relative_path=path),
            identities=identities,
            alias_of=alias_of,
        )

    # ---- directories ---------------------------------------------------------------------------------------

    def open_directory(self, path: bytes, sight: Sight) -> Sight:
        """Open a checkpoint directory that `look` saw, with its files.

        Args:
            path: as it was given to `look`.
            sight: what that returned, with a `place`.
        """
        place = sight.place
        assert place is not None
        try:
            return self._follow(place, path, None, sight.alias_of, must_read=True)
        except Changed as changed:
            return msgspec.structs.replace(
                sight, place=None, unreadable=changed.message, code="shards.incomplete", seal=Seal.OPEN
            )

    def _look_at_directory(
        self, path: bytes, place: Place, known: Record | None, alias_of: CheckpointId | None, *, must_read: bool
    ) -> Sight:
        """See whether a directory is a checkpoint, and whether its files are those that are known; opens none."""
        try:
            base_fd = os.open(place.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return unreachable(error)
        try:
            if not self.claims.is_checkpoint(base_fd, place.relative):
                return Sight(kind=LookKind.GONE)
            identities = directory_identities(base_fd, place.relative)
        except OSError as error:
            vanished = error.errno in (*_NOT_THERE, errno.ELOOP) and place.link is None
            return self._absent(path) if vanished else unreachable(error)
        finally:
            os.close(base_fd)
        if place.link is not None:
            identities = msgspec.structs.replace(identities, link=identity_of(place.link))
        if not must_read and known is not None and _is_settled(known) and known.identities.are_still(identities):
            return Sight(kind=LookKind.UNCHANGED)
        request = DescribeRequest(checkpoint_path=shown_path(self.root.join(path))[0], relative_path=path)
        return Sight(kind=LookKind.SEEN, place=place, request=request, identities=identities, alias_of=alias_of)

    def _is_listed_file(self, root_fd: int, path: bytes) -> bool:
        """Whether a file is a checkpoint by itself: not where it is part of a directory that is one.

        To list its directory at each look would take the square of the number of files in it: that is done only for
        names that sharded checkpoints use, and beneath directories that are hidden or listed as one. When a directory
        becomes or ceases to be a checkpoint, all that is beneath it is looked at again (`Tree`).
        """
        name = os.path.basename(path)
        if not is_checkpoint_name(name, self.suffixes):
            return False
        if is_member_name(name) or any(is_hidden(each) or self.is_directory(each) for each in directories_above(path)):
            return self.claims.holder(root_fd, path) is None
        return True

    # ---- links ---------------------------------------------------------------------------------------------

    def _look_at_link(
        self, root_fd: int, path: bytes, link: os.stat_result, known: Record | None, *, must_read: bool
    ) -> Sight:
        try:
            target = os.path.realpath(self.root.join(path), strict=True)
            is_directory = stat.S_ISDIR(os.stat(target).st_mode)
        except OSError as error:
            return self._unopened(root_fd, path, error, link, None)
        place, root = self._place_of(target, link)
        if place is None:
            return Sight(kind=LookKind.GONE, skipped_link=True)
        listed = is_directory or is_checkpoint_name(os.path.basename(place.relative), self.suffixes)
        alias = checkpoint_id(root.name, place.relative) if root is not None and listed else None
        if is_directory:
            return self._look_at_directory(path, place, known, alias, must_read=must_read)
        if not is_checkpoint_name(os.path.basename(path), self.suffixes):
            return Sight(kind=LookKind.GONE)
        return self._follow(place, path, known, alias, must_read=must_read)

    def _place_of(self, target: bytes, link: os.stat_result | None) -> tuple[Place | None, Root | None]:
        """Where a resolved path lies, and the root that holds it; None where nothing may lead."""
        for root in self.roots:
            if target.startswith(root.path.rstrip(b"/") + b"/"):
                return Place(root.path, target[len(root.path.rstrip(b"/")) + 1 :], link), root
        for allowed in self.allowed_targets:
            if target.startswith(allowed.rstrip(b"/") + b"/"):
                return Place(allowed, target[len(allowed.rstrip(b"/")) + 1 :], link), None
        return None, None

    def _look_beneath_link(
        self, root_fd: int, path: bytes, status: os.stat_result, known: Record | None, *, must_read: bool
    ) -> Sight:
        """Look at what a link to a directory leads to: inside the roots it is listed where it is, and only there."""
        directory, name = os.path.split(self.root.join(path))
        try:
            target = os.path.join(os.path.realpath(directory, strict=True), name)
        except OSError:
            return Sight(kind=LookKind.UNREACHABLE)
        place, root = self._place_of(target, None)
        if root is not None:
            return Sight(kind=LookKind.GONE)
        if stat.S_ISLNK(status.st_mode):
            return self._look_at_link(root_fd, path, status, known, must_read=must_read)
        if place is not None and stat.S_ISDIR(status.st_mode):
            return self._look_at_directory(path, place, known, None, must_read=must_read)
        if place is not None and stat.S_ISREG(status.st_mode):
            if not self._is_listed_file(root_fd, path):
                return Sight(kind=LookKind.GONE)
            return self._follow(place, path, known, None, must_read=must_read)
        return Sight(kind=LookKind.GONE, skipped_link=True)

    def _follow(
        self, place: Place, path: bytes, known: Record | None, alias_of: CheckpointId | None, *, must_read: bool
    ) -> Sight:
        """Open the target beneath the directory that it was found in: nothing may change that in between."""
        try:
            base_fd = os.open(place.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return unreachable(error)
        try:
            sight = self._open(base_fd, place.relative, known, must_read=must_read, link=place.link, alias_of=alias_of)
        finally:
            os.close(base_fd)
        return self._named(path, sight)

    def _named(self, path: bytes, sight: Sight) -> Sight:
        """`sight` of a target as that of the path that led to it."""
        if sight.request is None:
            return sight
        named = msgspec.structs.replace(
            sight.request, checkpoint_path=shown_path(self.root.join(path))[0], relative_path=path
        )
        opened = None if sight.opened is None else msgspec.structs.replace(sight.opened, request=named)
        return msgspec.structs.replace(sight, request=named, opened=opened)


def unreachable(error: OSError) -> Sight:
    """What it means that the system refused to show a path."""
    return Sight(kind=LookKind.UNREACHABLE, postponed=error.strerror if error.errno in SCARCE else None)


def _has_writer(request: DescribeRequest, files: OpenedFiles) -> bool | None:
    """Whether anybody has the checkpoint open for writing; of a directory: any of its files."""
    if not request.shards:
        return has_writer(files.checkpoint)
    answers = {has_writer(fd) for fd in files.shards}
    if True in answers:
        return True
    return None if None in answers or len(files.shards) < len(request.shards) else False


def has_writer(fd: int) -> bool | None:
    """Whether any process has the file open for writing; None where the system does not say.

    A read lease (fcntl(2), F_SETLEASE) is refused with EAGAIN while a writer has the file open. It needs the file's
    owner or CAP_LEASE, and a filesystem with leases. It is given back at once; a process that opens the file for
    writing in between is not made to wait longer than that. The process must ignore SIGIO, by which the kernel says
    that a lease is being broken.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _is_beneath_link(root_fd: int, path: bytes) -> bool:
    """Whether any directory on the way to `path` is a link."""
    return any(
        stat.S_ISLNK(os.stat(directory, dir_fd=root_fd, follow_symlinks=False).st_mode)
        for directory in directories_above(path)
    )


def _why_dangling(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "the link leads nowhere: it leads in a circle"
    return "the link leads nowhere: its target does not exist"


def _dangling_identities(link: os.stat_result) -> Identities:
    return Identities(identity_of(link), link=identity_of(link))


def _unopened_identities(root_fd: int, path: bytes, link: os.stat_result | None) -> Identities:
    """As a sweep sees a checkpoint that may not be read: else each sweep would have it looked at again."""
    own = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
    if stat.S_ISDIR(own.st_mode):
        identities = directory_identities(root_fd, path)
        return msgspec.structs.replace(identities, link=None if link is None else identity_of(link))
    identities = file_identities(DirectFiles(root_fd), path, identity_of(own))
    return msgspec.structs.replace(identities, link=None if link is None else identity_of(link))


def could_not_read(record: Record) -> bool:
    """Whether the disk refused a checkpoint's bytes: that may end without any change of the file."""
    return any(found.code == READ_ERROR for found in record.entry.findings)


def _is_settled(record: Record) -> bool:
    return record.entry.health in (Health.VALID, Health.INVALID) and not could_not_read(record)


def _close(files: OpenedFiles) -> None:
    for fd in files.all():
        with contextlib.suppress(OSError):  # of the flush; it is closed all the same (close(2))
            os.close(fd)
