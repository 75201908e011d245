"""Opening everything that a description needs: the checkpoint, its sidecars and its config, beneath a root.

Whoever opens needs rights; whoever parses (`describe_opened`) needs only the descriptors.
"""

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence

import msgspec

from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.formats.sharded import wants
from ckptd.validators.inspection import FileIdentity, Level
from ckptd.validators.reader import ALIGNMENT, identity_of

from .description import DescribeRequest, OpenedFiles, ShardFile
from .directories import Listing, is_checkpoint_directory, list_beneath, list_directory
from .entry import Identities, shown_path
from .experiment import Companions, DirectFiles, find_companions
from .record_identities import record_identities, steady
from .roots import open_beneath, open_directory_beneath

OPENED_PARTS = 160
"""Files of one directory that are opened at the same time; the least telling ones of a larger set stay closed."""
SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""This process, or the machine, is short of something: that says nothing of a file, and ends by itself."""
ATTEMPTS = 3
"""Times that a directory is opened anew when its files change meanwhile."""


class UnreadablePart(PermissionError):
    """Raised when a file of a checkpoint directory may not be opened: without it nothing can be said of the whole."""


def open_checkpoint(
    root_fd: int, relative_path: bytes, companions: Companions
) -> tuple[DescribeRequest, OpenedFiles, Identities]:
    """Open one checkpoint, a file or a directory that a sharded format claims, with its companions.

    A sidecar or config that cannot be opened (it vanished, is a FIFO, or a link out of the root) counts as absent,
    unless it is for want of a descriptor (`SCARCE`).
    Of a directory at most `OPENED_PARTS` files are opened, those that say most of the whole first.

    Args:
        root_fd: the open root (O_PATH will do).
        relative_path: of the checkpoint, beneath the root; also its path for people until the caller replaces
            `checkpoint_path`.
        companions: what was found around it.

    Returns:
        The request, the descriptors (the caller closes them) and the identities of what was opened.

    Raises:
        OSError: the checkpoint itself cannot be opened, EISDIR for a directory that no format claims. Nothing is
            left open.
        UnreadablePart: a file of the directory may not be opened.
        Changed: files of the directory came, went or changed at each attempt: it is being written.
    """
    with contextlib.ExitStack() as undo:
        checkpoint, shards, parts = _open_itself(undo, root_fd, relative_path)
        sidecars = _open_companions(undo, root_fd, companions.sidecars)
        records = _open_companions(undo, root_fd, companions.records)
        config = None if companions.config is None else _open_companion(root_fd, companions.config)
        if config is not None:
            undo.callback(os.close, config)
        request = DescribeRequest(
            checkpoint_path=os.fsdecode(relative_path),
            relative_path=relative_path,
            sidecar_names=tuple(sidecars),
            record_names=tuple(records),
            wandb_run=companions.wandb_run,
            config_name=companions.config if config is not None else None,
            run_failed=companions.run_failed,
            shards=shards,
            directory_name=shown_path(os.path.basename(relative_path))[0] if is_directory(checkpoint) else None,
        )
        files = OpenedFiles(
            checkpoint=checkpoint,
            sidecars=tuple(sidecars.values()),
            config=config,
            records=tuple(records.values()),
            shards=parts,
            owner=os.fstat(checkpoint).st_uid,
        )
        identities = identities_of(request, files)
        undo.pop_all()
        return request, files, identities


def open_described(root_fd: int, relative_path: bytes) -> tuple[int, tuple[ShardFile, ...], tuple[int, ...]]:
    """Open a checkpoint without its companions.

    Returns:
        The descriptor of the file or directory; the files of a directory, and descriptors of those that were opened.
        The caller closes all of them.

    Raises:
        OSError, UnreadablePart, Changed: as `open_checkpoint`.
    """
    with contextlib.ExitStack() as undo:
        opened = _open_itself(undo, root_fd, relative_path)
        undo.pop_all()
        return opened


@contextlib.contextmanager
def open_named(
    top: bytes, absolute: bytes, relative_path: bytes, level: Level
) -> Iterator[tuple[DescribeRequest, OpenedFiles]]:
    """As `open_checkpoint`, but following a link that the caller named, wherever it leads; closed at the end.

    Args:
        top: configs and records are looked for beneath this directory only.
        absolute: path of the checkpoint.
        relative_path: the same, beneath `top`.
        level: how much of the file is to be verified.

    Raises:
        OSError, UnreadablePart, Changed: as `open_checkpoint`.
    """
    with contextlib.ExitStack() as stack:
        root_fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root_fd)
        found = find_companions(DirectFiles(root_fd), relative_path)
        checkpoint, shards, parts = _open_named_itself(stack, absolute)
        beside = {}
        for name in (*found.sidecars, *found.records, *filter(None, [found.config])):
            fd = _open_companion(root_fd, name)
            if fd is not None:
                stack.callback(os.close, fd)
                beside[name] = fd
        request = DescribeRequest(
            checkpoint_path=shown_path(absolute)[0],
            relative_path=relative_path,
            level=level,
            sidecar_names=tuple(name for name in found.sidecars if name in beside),
            config_name=found.config if found.config in beside else None,
            record_names=tuple(name for name in found.records if name in beside),
            wandb_run=found.wandb_run,
            run_failed=found.run_failed,
            shards=shards,
            directory_name=shown_path(os.path.basename(os.path.realpath(absolute)))[0] if shards else None,
        )
        sidecars = tuple(beside[name] for name in request.sidecar_names)
        config = None if request.config_name is None else beside[request.config_name]
        records = tuple(beside[name] for name in request.record_names)
        yield (
            request,
            OpenedFiles(
                checkpoint=checkpoint,
                sidecars=sidecars,
                config=config,
                records=records,
                shards=parts,
                owner=os.fstat(checkpoint).st_uid,
            ),
        )


@contextlib.contextmanager
def past_the_cache(files: OpenedFiles) -> Iterator[OpenedFiles]:
    """The same files, to be read from the disk and not from the page cache: for a request that is `fresh`.

    The checkpoint's own descriptors are replaced where the file system allows it; the new ones are closed at the end.
    """
    with contextlib.ExitStack() as stack:

        def replaced(fd: int) -> int:
            direct = None if is_directory(fd) else reopen_direct(fd)
            if direct is None:
                return fd
            stack.callback(os.close, direct)
            return direct

        yield msgspec.structs.replace(
            files, checkpoint=replaced(files.checkpoint), shards=tuple(map(replaced, files.shards))
        )


def reopen_direct(fd: int) -> int | None:
    """A second descriptor of an opened file that reads past the page cache (O_DIRECT); the caller closes it.

    `fd` stays as it is. Reading through the new one writes back what is still dirty, and leaves what is cached there.

    Returns:
        None where the file system cannot read so (some of FUSE, tmpfs before Linux 6.6), or /proc is hidden.
    """
    flags = os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        direct = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return None
    with contextlib.suppress(OSError), mmap.mmap(-1, ALIGNMENT) as block:
        os.preadv(direct, [block], 0)
        return direct
    os.close(direct)
    return None


def identities_of(request: DescribeRequest, files: OpenedFiles) -> Identities:
    """The identities of what was opened for a request."""
    itself = _identity(files.checkpoint)
    listing = Listing(itself, 0, request.shards) if is_directory(files.checkpoint) else None
    named = dict(zip(request.sidecar_names, map(_identity, files.sidecars), strict=True))
    named |= zip(request.record_names, map(_identity, files.records), strict=True)
    if files.config is not None and request.config_name is not None:
        named[request.config_name] = _identity(files.config)
    companions = Companions(
        sidecars=request.sidecar_names,
        config=request.config_name,
        run_failed=request.run_failed,
        records=request.record_names,
    )
    identities = companions_identities(itself if listing is None else listing.identity, companions, named.get)
    return identities if listing is None else msgspec.structs.replace(identities, shards=listing.digest)


def companions_identities(
    itself: FileIdentity, companions: Companions, identity_at: Callable[[bytes], FileIdentity | None]
) -> Identities:
    """The identities of a checkpoint and of what belongs to it.

    Args:
        itself: the checkpoint's.
        companions: what was found around it.
        identity_at: the identity of a file, None where it is gone or cannot be asked.
    """
    sidecars = [identity for name in companions.sidecars if (identity := identity_at(name)) is not None]
    records = {name: identity for name in companions.records if (identity := identity_at(name)) is not None}
    digest, logs = record_identities(records.items())
    config = None if companions.config is None else identity_at(companions.config)
    if config is not None and companions.config is not None:
        config = steady(companions.config, config, records)
    return Identities(
        file=itself,
        sidecars=tuple(sidecars),
        config=config,
        run_failed=companions.run_failed,
        records=digest,
        logs=logs,
    )


def file_identities(view: DirectFiles, relative_path: bytes, itself: FileIdentity) -> Identities:
    """The identities of a checkpoint and its companions as `open_checkpoint` finds them; opens no file.

    Raises:
        OSError: the view could not tell whether a file is there.
    """

    def identity_at(name: bytes) -> FileIdentity | None:
        status = view.status(name)
        return None if status is None else identity_of(status)

    return companions_identities(itself, find_companions(view, relative_path), identity_at)


def is_directory(fd: int) -> bool:
    """Whether a descriptor is that of a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def is_opened_directory(fd: int) -> bool:
    """`is_directory`, for those who parse.

    Raises:
        Unreadable: the system refuses to tell.
    """
    try:
        return is_directory(fd)
    except OSError as error:
        raise Unreadable(f"fstat failed: {error.strerror}", error.errno) from error


def identity_of_opened(fd: int) -> FileIdentity:
    """The identity of an opened file, for those who parse.

    Raises:
        Unreadable: the system refuses to tell.
    """
    try:
        return identity_of(os.fstat(fd))
    except OSError as error:
        raise Unreadable(f"fstat failed: {error.strerror}", error.errno) from error


def status_of_checkpoint(root_fd: int, relative_path: bytes) -> tuple[os.stat_result, FileIdentity]:
    """The status of a checkpoint, and the identity that its description carries.

    Raises:
        OSError: it cannot be opened beneath the root, EXDEV where it leads out of it.
    """
    fd = _open_place(root_fd, relative_path)
    try:
        status = os.fstat(fd)
        is_file = not stat.S_ISDIR(status.st_mode)
        return status, identity_of(status) if is_file else list_directory(fd).identity
    finally:
        os.close(fd)


def directory_identities(root_fd: int, relative_path: bytes) -> Identities:
    """The identities of a checkpoint directory with its companions, as `open_checkpoint` finds them; opens no file.

    Raises:
        OSError: the directory, or one in it, cannot be listed.
    """
    listing = list_beneath(root_fd, relative_path)
    identities = file_identities(DirectFiles(root_fd), relative_path, listing.identity)
    return msgspec.structs.replace(identities, shards=listing.digest)


def _open_named_itself(
    stack: contextlib.ExitStack, absolute: bytes
) -> tuple[int, tuple[ShardFile, ...], tuple[int, ...]]:
    """Open the file, or the directory with its files, that a caller named; a link is followed."""
    if not os.path.isdir(absolute):
        checkpoint = os.open(absolute, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        stack.callback(os.close, checkpoint)
        return checkpoint, (), ()
    directory, name = os.path.split(os.path.realpath(absolute))
    base_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, base_fd)
    checkpoint, shards, parts = open_described(base_fd, name)
    for fd in (checkpoint, *parts):
        stack.callback(os.close, fd)
    return checkpoint, shards, parts


# ---- directories -----------------------------------------------------------------------------------------------


def _open_itself(
    undo: contextlib.ExitStack, root_fd: int, relative_path: bytes
) -> tuple[int, tuple[ShardFile, ...], tuple[int, ...]]:
    checkpoint = _open_place(root_fd, relative_path)
    undo.callback(os.close, checkpoint)
    if not is_directory(checkpoint):
        return checkpoint, (), ()
    if not is_checkpoint_directory(root_fd, relative_path, checkpoint):
        raise IsADirectoryError(errno.EISDIR, "a directory that is no checkpoint", os.fsdecode(relative_path))
    for _ in range(ATTEMPTS):
        with contextlib.ExitStack() as attempt:
            before = list_directory(checkpoint)
            opened = _open_parts(attempt, checkpoint, before.files)
            if opened is not None and list_directory(checkpoint) == before:
                undo.push(attempt.pop_all())
                return checkpoint, *opened
    raise Changed(f"the files of {shown_path(relative_path)[0]} changed while they were opened")


def _open_place(root_fd: int, relative_path: bytes) -> int:
    """Open a regular file, or a directory to list it."""
    try:
        return open_beneath(root_fd, relative_path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what it says of a directory, among others
            raise
        refused = error
    try:
        return open_directory_beneath(root_fd, relative_path)
    except NotADirectoryError:
        raise refused from None


def _open_parts(
    undo: contextlib.ExitStack, directory_fd: int, files: Sequence[ShardFile]
) -> tuple[tuple[ShardFile, ...], tuple[int, ...]] | None:
    """Open the files that say most; None if one of them is not what was listed."""
    wanted = sorted(files, key=lambda file: (wants(file.name), file.name))[:OPENED_PARTS]
    descriptors: dict[bytes, int] = {}
    for file in wanted:
        try:
            fd = open_beneath(directory_fd, file.name, follow_links=False)
        except PermissionError as error:
            shown = shown_path(file.name)[0]
            raise UnreadablePart(error.errno, f"{error.strerror}: {shown}", os.fsdecode(file.name)) from error
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO):
                return None  # it vanished, or something else has its name
            raise
        undo.callback(os.close, fd)
        if _identity(fd) != file.identity:
            return None
        descriptors[file.name] = fd
    shards = tuple(msgspec.structs.replace(file, opened=file.name in descriptors) for file in files)
    return shards, tuple(descriptors[file.name] for file in shards if file.opened)


def _identity(fd: int) -> FileIdentity:
    return identity_of(os.fstat(fd))


def _open_companions(undo: contextlib.ExitStack, root_fd: int, names: Sequence[bytes]) -> dict[bytes, int]:
    """Those that can be opened, each closed by `undo`."""
    opened: dict[bytes, int] = {}
    for name in names:
        fd = _open_companion(root_fd, name)
        if fd is not None:
            undo.callback(os.close, fd)
            opened[name] = fd
    return opened


def _open_companion(root_fd: int, relative_path: bytes) -> int | None:
    try:
        return open_beneath(root_fd, relative_path)
    except OSError as error:
        if error.errno in SCARCE:
            raise
        return None
