"""Sidecars on disk: who owns one, and writing, replacing and removing ours without ever losing a stranger's.

Everything is relative to an open root and follows no link. Ownership is a property of the bytes: the last line of a
sidecar that ckptd or a training wrote is the digest of everything above it, so any edit, also of a comment, makes it a
person's. ckptd replaces and removes what ckptd wrote; a training also what trainings wrote; nobody what a person wrote.
"""

import contextlib
import enum
import errno
import hashlib
import os
import re
import time

import msgspec
import yaml

from ckptd.validators.inspection import FileIdentity, Plain
from ckptd.validators.reader import identity_of

from .description import CheckpointMetadata, SidecarStatus, Source
from .file_names import stem_of
from .placing import check_name, fill, named, opened_directory, put_back, read_regular, sync_directory
from .renaming import exchange, rename_no_replace
from .temporary import is_abandoned, is_swap_name, is_temporary_name, swap_name, temporary_name


class Author(enum.StrEnum):
    """Who wrote a sidecar, as its last line proves. The value stands there before the digest."""

    CKPTD = "blake2b"
    """The daemon, a command or the library, from the checkpoint: what it says can be found out again."""
    TRAINING = "training-blake2b"
    """A training's callback, which knows more than the checkpoint: to ckptd it is as foreign as a person's."""


_HEADERS = {
    Author.CKPTD: (
        "# checkpoint metadata, schema 1.0, written by ckptd from the checkpoint beside it\n"
        "# edit anything and the file is yours: ckptd then never replaces or removes it\n"
    ),
    Author.TRAINING: (
        "# checkpoint metadata, schema 1.0, written by the training that saved the checkpoint beside it\n"
        "# edit anything and the file is yours: no training and no daemon then replaces or removes it\n"
    ),
}
_REPLACES = {Author.CKPTD: frozenset({Author.CKPTD}), Author.TRAINING: frozenset(Author)}
"""Author → whose sidecars it may replace and remove."""
_DIGEST_LINE = re.compile(rb"\n  body_digest: (blake2b|training-blake2b):([0-9a-f]{64})\n\Z")
_DIGEST_LINE_MAX_BYTES = len(b"\n  body_digest: training-blake2b:") + 64 + 1
_DIGEST_BYTES = 32
_SOURCE_KEY = b"\nsource:\n"
_SOURCE_STATE = re.compile(rb"\n  size_bytes: ([0-9]{1,19})\n  modified_at: '([0-9TZ:.-]{20,40})'\n")
_SOURCE_MAX_BYTES = 2048
"""The last section is short, as `render` writes it, and no text of a person can stand at the margin behind it."""

_Dumper: type[yaml.SafeDumper] | type[yaml.CSafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _PlainDumper(_Dumper):  # type: ignore[valid-type, misc]
    """Writes a value that occurs twice in full twice: readers, ours among them, refuse anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


# ---- bytes -----------------------------------------------------------------------------------------------------


def sidecar_path(relative_path: bytes, *, long_name: bool = True) -> bytes:
    """Where the daemon writes the sidecar of a checkpoint: `best.ckpt.metadata.yaml`, or `best.metadata.yaml`."""
    directory, name = os.path.split(relative_path)
    return os.path.join(directory, (name if long_name else stem_of(name)) + b".metadata.yaml")


def render(
    metadata: CheckpointMetadata, user: dict[str, Plain] | None = None, *, author: Author = Author.CKPTD
) -> bytes:
    """Write metadata as YAML: a comment, every key in the schema's order, nulls included, `source` last.

    The last line is `source.body_digest`: BLAKE2b-256 of all bytes before that line, personalised by the author. Keys
    of `user` stand where they stood (in their section, or before `source`); the schema's own values win over them.
    """
    document = msgspec.to_builtins(msgspec.structs.replace(metadata, source=Source()))
    del document["source"]
    document = _merged(document, {k: v for k, v in (user or {}).items() if k != "source"})
    source = msgspec.to_builtins(metadata.source)
    del source["body_digest"]  # the last field of the schema: the line that follows
    body = (_HEADERS[author] + _dump(document | {"source": source})).encode()
    return body + f"  body_digest: {author.value}:{_digest(body, author)}\n".encode("ascii")


def author_of(data: bytes) -> Author | None:
    """Who wrote exactly these bytes; None for a person, or anybody else who does not say so by the last line."""
    match = _DIGEST_LINE.search(data[-_DIGEST_LINE_MAX_BYTES:])
    if match is None:
        return None
    author = Author(match.group(1).decode("ascii"))
    body = data[: 1 - len(match.group())]  # its line feed ends the body
    return author if _digest(body, author).encode("ascii") == match.group(2) else None


def is_ours(data: bytes) -> bool:
    """Whether ckptd wrote exactly these bytes. It says nothing about whether they describe the file beside them."""
    return author_of(data) is Author.CKPTD


def recorded_state(data: bytes) -> tuple[int, str] | None:
    """Size and time of the file that ckptd described with exactly these bytes, without parsing YAML.

    Returns:
        `source.size_bytes` and `source.modified_at`; None for bytes of anybody else.
    """
    tail = data[-_SOURCE_MAX_BYTES:]  # bounded: anybody can put a digest under anything
    begin = tail.rfind(_SOURCE_KEY)
    match = _SOURCE_STATE.search(tail, begin) if begin >= 0 else None
    if match is None or not is_ours(data):
        return None
    return int(match.group(1)), match.group(2).decode("ascii")


def status_of(data: bytes, source: Source | None, *, size_bytes: int, archive_id: str | None) -> SidecarStatus:
    """Judge a sidecar against the checkpoint beside it.

    Args:
        data: The sidecar's bytes.
        source: What they say of the file they describe; None if they could not be read as metadata.
        size_bytes: Of the checkpoint.
        archive_id: Of the checkpoint; None where it has none or was not read.

    Returns:
        Stale when size or archive id are recorded and differ; a different time alone is a copy.
    """
    if source is None:
        return SidecarStatus.INVALID
    ours = is_ours(data)
    other_size = source.size_bytes is not None and source.size_bytes != size_bytes
    other_archive = None not in (source.archive_id, archive_id) and source.archive_id != archive_id
    if other_size or other_archive:
        return SidecarStatus.STALE_OURS if ours else SidecarStatus.STALE
    return SidecarStatus.OURS if ours else SidecarStatus.FOREIGN


def _dump(document: Plain) -> str:
    return str(
        yaml.dump(
            document, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000
        )
    )


def _merged(schema: Plain, user: dict[str, Plain]) -> dict[str, Plain]:
    merged = dict(schema)
    for key, value in user.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], dict) and isinstance(value, dict):
            merged[key] = _merged(merged[key], value)
    return merged


def _digest(body: bytes, author: Author) -> str:
    # Personalised, so that the word before the digest cannot be edited unnoticed either.
    person = b"" if author is Author.CKPTD else author.name.encode("ascii")
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES, person=person).hexdigest()


# ---- files -----------------------------------------------------------------------------------------------------


def write_sidecar(
    root_fd: int, relative_path: bytes, data: bytes, *, like: os.stat_result, replace_ours: bool = False
) -> FileIdentity:
    """Put a sidecar in place: whole or not at all, durable, and never over somebody else's file.

    A temporary file in the same directory is written and synced, then renamed without replacing. To replace one of
    ours, the two files are exchanged and what came out is judged again, so that a stranger's file that appeared in
    between goes back to its place (where the filesystem cannot exchange, the last check is right before the rename).
    What a training wrote is a stranger's, unless `data` is a training's as well.

    Args:
        root_fd: The open root (O_PATH will do).
        relative_path: Of the sidecar, beneath the root.
        data: What `render` returned.
        like: Status of the checkpoint: the sidecar gets its owner, group and mode as far as that is permitted.
        replace_ours: Replace a sidecar that is ours; otherwise an existing file is never touched. A training replaces
            also what a training wrote.

    Returns:
        The identity of the file in its place.

    Raises:
        FileExistsError: a file is there that may not be replaced.
        OSError: the system refused; carries the relative path. Nothing of ours is left behind.
    """
    directory, name = os.path.split(relative_path)
    with named(relative_path), opened_directory(root_fd, directory) as directory_fd:
        identity = place_sidecar(directory_fd, name, data, like=like, replace_ours=replace_ours)
        sync_directory(directory_fd)
        return identity


def place_sidecar(
    directory_fd: int, name: bytes, data: bytes, *, like: os.stat_result, replace_ours: bool = False
) -> FileIdentity:
    """As `write_sidecar`, for several files of one directory: durable once that directory has been synced.

    Args:
        directory_fd: The directory, opened for reading.
        name: Of the sidecar.
        data: What `render` returned.
        like: Status of the checkpoint.
        replace_ours: As `write_sidecar`.

    Returns:
        The identity of the file in its place.

    Raises:
        FileExistsError: a file is there that may not be replaced.
        OSError: the system refused. Nothing of ours is left behind.
    """
    check_name(directory_fd, name)
    authors = _REPLACES[author_of(data) or Author.CKPTD] if replace_ours else frozenset()
    temporary = temporary_name(name)
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory_fd
    )
    try:
        fill(fd, data, like)
        if not (authors and _replace(directory_fd, temporary, name, authors)):
            rename_no_replace(directory_fd, temporary, name)
        identity = identity_of(os.fstat(fd))  # after the rename, which changes ctime
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory_fd)
    return identity


def remove_sidecar(root_fd: int, relative_path: bytes, *, author: Author = Author.CKPTD) -> bool:
    """Remove a sidecar if it is ours: taken out of its place first, then judged once more, then unlinked.

    Args:
        root_fd: The open root (O_PATH will do).
        relative_path: Of the sidecar, beneath the root.
        author: Who removes it: a training removes also what a training wrote.

    Returns:
        Whether it was removed; False where there is none or it belongs to somebody else.

    Raises:
        OSError: the system refused; carries the relative path.
    """
    directory, name = os.path.split(relative_path)
    with named(relative_path):
        try:
            with opened_directory(root_fd, directory) as directory_fd:
                return _remove(directory_fd, name, _REPLACES[author])
        except (FileNotFoundError, NotADirectoryError):
            return False


def clean_leftovers(root_fd: int, relative_directory: bytes, *, now: float | None = None) -> int:
    """Remove temporary files that a killed writer left in a directory.

    Only those whose writer is gone (see `temporary`). A swap file that turns out to be a person's, caught between
    two renames, stays; a training's goes, since trainings that are killed while they replace their own leave most.

    Returns:
        How many were removed.

    Raises:
        OSError: the directory cannot be listed.
    """
    removed = 0
    moment = time.time() if now is None else now
    with named(relative_directory), opened_directory(root_fd, relative_directory) as directory_fd:
        for name in map(os.fsencode, os.listdir(directory_fd)):
            if not is_temporary_name(name):
                continue
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
                if not is_abandoned(name, status.st_mtime, moment):
                    continue
                if is_swap_name(name):
                    removed += _unlink_of(directory_fd, name, frozenset(Author))
                else:
                    os.unlink(name, dir_fd=directory_fd)
                    removed += 1
    return removed


def _replace(directory_fd: int, temporary: bytes, name: bytes, authors: frozenset[Author]) -> bool:
    """Replace what is there if one of `authors` wrote it; False if nothing is there.

    The temporary file takes the name of a swap file first: only files of that kind can ever hold a stranger's bytes,
    so that cleaning up after a crash knows which ones to look into.
    """
    try:
        before = read_regular(directory_fd, name)
    except FileNotFoundError:
        return False
    if before is None or author_of(before) not in authors:
        raise FileExistsError(errno.EEXIST, "a file of somebody else is there; it is not replaced")
    swap = swap_name(name)
    mine = os.stat(temporary, dir_fd=directory_fd, follow_symlinks=False).st_ino
    rename_no_replace(directory_fd, temporary, swap)
    try:
        if not exchange(directory_fd, swap, name):
            os.rename(swap, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            return True
    except OSError as error:
        rename_no_replace(directory_fd, swap, temporary)
        if isinstance(error, FileNotFoundError):
            return False
        raise
    if _unlink_of(directory_fd, swap, authors):
        return True
    if put_back(directory_fd, swap, name, mine):
        rename_no_replace(directory_fd, swap, temporary)
    raise FileExistsError(errno.EEXIST, "somebody else put a file there meanwhile; it is not replaced")


def _remove(directory_fd: int, name: bytes, authors: frozenset[Author]) -> bool:
    before = read_regular(directory_fd, name)
    if before is None or author_of(before) not in authors:
        return False
    swap = swap_name(name)
    rename_no_replace(directory_fd, name, swap)
    if not _unlink_of(directory_fd, swap, authors):
        with contextlib.suppress(FileExistsError):  # its owner has put a newer one there
            rename_no_replace(directory_fd, swap, name)
        return False
    sync_directory(directory_fd)
    return True


def _unlink_of(directory_fd: int, name: bytes, authors: frozenset[Author]) -> bool:
    data = read_regular(directory_fd, name)
    if data is None or author_of(data) not in authors:
        return False
    os.unlink(name, dir_fd=directory_fd)
    return True
