"""inspect_checkpoint(path, level): format → facts → checks → Inspection; the one door of this package."""

import itertools
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from . import facts, fingerprint
from .architectures import Table, load_table
from .assembly import describe_tensors, describe_value
from .bare import judge_bare
from .checks import safety, weights_only
from .checks.architecture import judge_architecture
from .checks.checksum import digest_file, mismatch_message
from .errors import Changed, Corrupt, Incomplete, Unreadable
from .findings import Finding, finding
from .formats import safetensors, torch_legacy, torch_zip, torchscript
from .formats.sharded import Part
from .formats.sniff import HEAD_BYTES, sniff
from .garbage import no_garbage_collection
from .inspection import FileIdentity, Format, Inspection, Level, Safety, Seal
from .levels import Located, check_available, verify_archive_contents, verify_plain
from .plain import clip, to_plain
from .programs import inspect_program
from .reader import FileReader, Reading
from .sharded.directories import format_of, inspect_members
from .sharded.opened_parts import opened_parts
from .storages import ArchiveStorages, RangeStorages, Storages
from .tensors import make_table
from .text import counted
from .unpickle import InertPickle, load_inert, names_behind

MAX_PICKLE_BYTES = 512 * 1024 * 1024
"""Largest `data.pkl` that is parsed. That of 20,000 tensors has 2.3 MB; its stand-ins take about 15 times its size."""

_ATTEMPTS = 3
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def inspect_checkpoint(
    path: str | os.PathLike[str],
    level: Level = Level.STRUCTURE,
    *,
    required_keys: Sequence[str] = (),
    architectures: Table | None = None,
) -> Inspection:
    """Inspect one checkpoint in this process. Nothing in it is executed; at level `structure` no tensor is read.

    A hostile file can exhaust the memory, the stack or the time of the process that parses it (see `unpickle`); where
    that matters, use the worker pool, as the daemon and the command line do.

    Args:
        path: a regular file, a directory that a sharded format claims (`sharded.claim`), or a link to one of them.
        level: how much to verify: `structure`, `checksum` or `weights`.
        required_keys: keys of the state dict, or prefixes of such (`model.encoder`), that must be there.
        architectures: what models are recognised by (`load_table`); by default the packaged table.

    Raises:
        Unreadable: it cannot be opened or read, or is neither a regular file nor a checkpoint directory.
        Changed: it was modified during each of three attempts.
        ValueError: `level` is not available: `none`, or `weights` without torch (`TorchMissing`).
    """
    check_available(level)
    for attempt in itertools.count(1):
        fd = _open(path)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return _inspect_listed(fd, path, level, required_keys, architectures)
            return inspect_opened(fd, os.fspath(path), level, required_keys=required_keys, architectures=architectures)
        except Changed:
            if attempt == _ATTEMPTS:
                raise
        finally:
            os.close(fd)
    raise AssertionError("unreachable")


def inspect_opened(
    fd: int,
    checkpoint_path: str,
    level: Level = Level.STRUCTURE,
    reading: Reading | None = None,
    *,
    required_keys: Sequence[str] = (),
    architectures: Table | None = None,
) -> Inspection:
    """Inspect an opened file. Whatever it contains becomes findings, never an exception.

    Args:
        fd: opened for reading; the caller closes it. Its position is neither used nor changed.
        checkpoint_path: for people; never opened.
        level: how much to verify: `structure`, `checksum` or `weights`.
        reading: how fast, and past the page cache or not; by default as fast as it goes.
        required_keys: keys of the state dict, or prefixes of such (`model.encoder`), that must be there.
        architectures: what models are recognised by (`load_table`); by default the packaged table.

    Raises:
        Changed: the file was modified meanwhile; look again.
        Unreadable: the system refused to read, or it is no regular file.
        ValueError: `level` is not available: `none`, or `weights` without torch (`TorchMissing`).
    """
    check_available(level)
    reader = FileReader(fd, reading)
    with no_garbage_collection():
        inspection = _inspect(reader, checkpoint_path, level)
        inspection = judge_architecture(inspection, required_keys, architectures or load_table())
        if inspection.digest is None and inspection.is_complete and level.covers(Level.CHECKSUM):
            # Nothing can be said of what it holds; that these are not the bytes of an earlier time, can.
            inspection = msgspec.structs.replace(inspection, digest=digest_file(torch_zip.Source(reader)))
    reader.check_unchanged()
    return inspection


def inspect_directory(
    parts: Sequence[Part],
    directory: FileIdentity,
    checkpoint_path: str,
    level: Level = Level.STRUCTURE,
    reading: Reading | None = None,
    *,
    required_keys: Sequence[str] = (),
    architectures: Table | None = None,
) -> Inspection:
    """Inspect a checkpoint that is a directory. Whatever its files contain becomes findings, never an exception.

    Args:
        parts: all its files, down to `sharded.DEPTH`; the caller opened them, or some of them, and closes them.
        directory: identity of the directory itself.
        checkpoint_path: of the directory; its last part has a say in what the directory is. Never opened.
        level: how much to verify: `structure`, `checksum` or `weights`.
        reading: how fast, and past the page cache or not; by default as fast as it goes.
        required_keys: keys of the state dict, or prefixes of such (`model.encoder`), that must be there.
        architectures: what models are recognised by (`load_table`); by default the packaged table.

    Raises:
        Changed: a file was modified since its identity was taken; look again.
        Unreadable: the system refused to read.
        ValueError: `level` is not available: `none`, or `weights` without torch (`TorchMissing`).
    """
    check_available(level)
    readers = {part.name: FileReader(part.fd, reading) for part in parts if part.fd is not None}
    if any(part.name in readers and readers[part.name].identity != part.identity for part in parts):
        raise Changed(f"a file of {checkpoint_path} was modified since it was opened")
    with no_garbage_collection():
        inspection = inspect_members(parts, readers, directory, checkpoint_path, level, _inspect)
        inspection = judge_architecture(inspection, required_keys, architectures or load_table())
    for reader in readers.values():
        reader.check_unchanged()
    return inspection


def _open(path: str | os.PathLike[str]) -> int:
    try:
        return os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise Unreadable(f"{os.fspath(path)} cannot be opened: {error.strerror}", error.errno) from error
    except ValueError as error:
        raise Unreadable(f"{os.fspath(path)!r} is no possible path: {error}") from error


def _inspect_listed(
    fd: int,
    path: str | os.PathLike[str],
    level: Level,
    required_keys: Sequence[str],
    architectures: Table | None,
) -> Inspection:
    """A directory that somebody named: its files are opened here, none by way of a link."""
    real = os.path.realpath(path)  # a link's own name says nothing about the directory
    with opened_parts(fd) as (parts, identity):
        if format_of(real, parts) is None:
            raise Unreadable(f"{os.fspath(path)} is a directory, but none that holds a sharded checkpoint")
        inspection = inspect_directory(
            parts, identity, real, level, required_keys=required_keys, architectures=architectures
        )
    return msgspec.structs.replace(inspection, checkpoint_path=os.fspath(path))


def _inspect(reader: FileReader, checkpoint_path: str, level: Level) -> Inspection:
    source = torch_zip.Source(reader)
    head = source.read(0, min(HEAD_BYTES, source.size))
    blank = Inspection(checkpoint_path=checkpoint_path, identity=reader.identity)
    if torch_zip.looks_like_archive(head):
        if torch_legacy.is_tar(head[: torch_legacy.TAR_BLOCK_BYTES]):
            both = finding("archive.ambiguous", "the file is a zip archive and a tar archive at once")
            return msgspec.structs.replace(blank, format=Format.TORCH_ZIP, findings=(both,))
        return _inspect_zip(source, msgspec.structs.replace(blank, format=Format.TORCH_ZIP), level)
    if safetensors.looks_like_safetensors(head):
        # There is no pickle in it.
        blank = msgspec.structs.replace(blank, format=Format.SAFETENSORS, safety=Safety.SAFE)
        return _inspect_plain(source, blank, level, _inspect_safetensors)
    if torch_legacy.looks_like_legacy(head):
        blank = msgspec.structs.replace(blank, format=Format.TORCH_LEGACY)
        return _inspect_plain(source, blank, level, _inspect_legacy)
    sniffed = sniff(head, source.size)
    found = (finding(sniffed.code, sniffed.message), *_hidden_archive(source, head))
    blank = msgspec.structs.replace(blank, format=sniffed.format, findings=found)
    judged = judge_bare(source, head)
    if judged is None:
        return blank
    return judged.of(msgspec.structs.replace(blank, findings=(*found, *judged.findings)))


def _hidden_archive(source: torch_zip.Source, head: bytes) -> list[Finding]:
    """An archive behind something else: other readers open it, torch.load sees what stands in front."""
    begin = torch_zip.hidden_archive(source) if head.strip(b"\0") else None
    if begin is None:
        return []
    message = f"a zip archive begins at byte {begin:,}: zip readers open that, torch.load reads what stands before it"
    return [finding("archive.ambiguous", message)]


def _inspect_plain(
    source: torch_zip.Source,
    blank: Inspection,
    level: Level,
    inspect: Callable[[torch_zip.Source, Inspection], tuple[Inspection, Located | None]],
) -> Inspection:
    """Inspect a format that states its exact length, but no checksums."""
    try:
        inspection, located = inspect(source, msgspec.structs.replace(blank, seal=Seal.SEALED))
    except Incomplete as error:
        return msgspec.structs.replace(blank, seal=Seal.OPEN, findings=(finding("archive.incomplete", error.message),))
    except Corrupt as error:
        return msgspec.structs.replace(blank, findings=(finding(error.code, error.message),))
    if level is Level.STRUCTURE or inspection.seal is not Seal.SEALED:
        return inspection
    return verify_plain(source, inspection, located, level)


def _inspect_safetensors(source: torch_zip.Source, sealed: Inspection) -> tuple[Inspection, Located]:
    contents = safetensors.read_contents(source)
    names = contents.names
    table, problems = make_table(names, contents.tensors)
    tensors = facts.Tensors(table, (facts.Segment("", "weights", table, names),) if names else (), problems)
    storages = RangeStorages(source, contents.ranges)
    described = msgspec.structs.replace(
        describe_tensors(tensors, {}, storages, sealed),
        hyper_parameters=to_plain(contents.metadata) if contents.metadata else None,
        archive_id=fingerprint.sampled_id(source, contents.header_end),
    )
    return described, Located(table, storages)


def _inspect_legacy(source: torch_zip.Source, sealed: Inspection) -> tuple[Inspection, Located | None]:
    contents = torch_legacy.read_contents(source)
    proved = contents.failure is None
    judgement = safety.judge(contents.globals, proved, lambda: proved and _accepts_legacy(source, contents))
    findings = list(judgement.findings)
    if contents.failure is not None:
        findings.append(finding(contents.failure.code, contents.failure.message))
        return judgement.of(msgspec.structs.replace(sealed, seal=Seal.NONE, findings=tuple(findings))), None
    judged = msgspec.structs.replace(
        judgement.of(sealed),
        archive_id=fingerprint.sampled_id(source, contents.pickles_end),
        findings=tuple(findings),
    )
    return _described(contents.value, RangeStorages(source, contents.ranges), judged)


def _described(value: Any, storages: Storages, judged: Inspection) -> tuple[Inspection, Located | None]:
    inspection, table = describe_value(value, storages, judged)
    return inspection, None if table is None else Located(table, storages)


def _accepts_legacy(source: torch_zip.Source, contents: torch_legacy.Contents) -> bool:
    pickles = source.read(0, contents.pickles_end)
    return weights_only.accepts(pickles, contents.tally, streams=torch_legacy.PICKLES)


def _inspect_zip(source: torch_zip.Source, blank: Inspection, level: Level) -> Inspection:
    try:
        directory = torch_zip.find_directory(source)
    except Incomplete as error:
        return msgspec.structs.replace(blank, seal=Seal.OPEN, findings=(finding("archive.incomplete", error.message),))
    except Corrupt as error:
        return msgspec.structs.replace(blank, findings=(finding(error.code, error.message),))
    sealed = msgspec.structs.replace(blank, seal=Seal.SEALED)
    try:
        archive = torch_zip.read_archive(source, directory)
    except Corrupt as error:
        return msgspec.structs.replace(sealed, findings=(finding(error.code, error.message),))
    inspection, located = _inspect_archive(archive, sealed)
    return inspection if level is Level.STRUCTURE else verify_archive_contents(archive, inspection, located, level)


def _inspect_archive(archive: torch_zip.Archive, sealed: Inspection) -> tuple[Inspection, Located | None]:
    """What an archive holds, and its tensors where they are known."""
    try:
        return _inspect_records(archive, sealed)
    except Corrupt as error:
        return msgspec.structs.replace(sealed, findings=(finding(error.code, error.message),)), None


def _inspect_records(archive: torch_zip.Archive, sealed: Inspection) -> tuple[Inspection, Located | None]:
    if torchscript.looks_like_program(archive):
        return inspect_program(archive, sealed, _read_pickle)
    index = archive.find("data.pkl")
    if index is None:
        found = (finding("format.unknown", "the file is a zip archive, but without the data.pkl of torch.save"),)
        return msgspec.structs.replace(sealed, format=Format.UNKNOWN, findings=found), None
    pickle = _read_pickle(archive, index)
    inert = load_inert(pickle)
    judgement, findings = _judge_pickle(pickle, inert)
    if not archive.has_checksums:
        findings.append(finding("archive.unverifiable", "the archive carries no checksums"))
    if archive.directory.count(b".pkl") > 1:
        findings += _unread_pickles(archive)
    judged = msgspec.structs.replace(
        judgement.of(sealed),
        archive_id=fingerprint.archive_id(archive, pickle),
        findings=tuple(findings),
    )
    return (judged, None) if inert.failure is not None else _described(inert.value, ArchiveStorages(archive), judged)


def _judge_pickle(pickle: bytes, inert: InertPickle) -> tuple[safety.Judgement, list[Finding]]:
    """What the one pickle of an archive says about loading it, and what is wrong with it."""
    if inert.failure is not None:
        stopped = inert.failure.code == "pickle.limits"
        judgement = safety.judge(inert.globals, proved=False, accepted=None if stopped else False)
        return judgement, [*judgement.findings, finding(inert.failure.code, inert.failure.message)]
    proved = inert.consumed == len(pickle)
    behind = () if proved else names_behind(pickle[inert.consumed :])
    judgement = safety.judge(inert.globals, proved, lambda: weights_only.accepts(pickle, inert.tally), behind)
    if proved:
        return judgement, judgement.findings
    message = f"the pickle in data.pkl is followed by {counted(len(pickle) - inert.consumed, 'byte')}"
    return judgement, [*judgement.findings, finding("pickle.second_stream", message)]


def _unread_pickles(archive: torch_zip.Archive) -> list[Finding]:
    """torch.load reads no pickle but data.pkl; others may be there for other readers, as torch.package writes them."""
    main = f"{archive.stem}/data.pkl"
    others = [clip(name, 80) for name in archive.names if name.endswith(".pkl") and name != main]
    if not others:
        return []
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [finding("pickle.unread_record", f"pickles that torch.load does not read lie beside data.pkl: {shown}")]


def _read_pickle(archive: torch_zip.Archive, index: int) -> bytes:
    """The bytes of a pickle, once their size and checksum have been found right: damage makes a parser run wild."""
    size = archive.sizes[index]
    if size > MAX_PICKLE_BYTES:
        name = clip(archive.names[index].removeprefix(f"{archive.stem}/"))
        raise Corrupt("pickle.limits", f"{name} has {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are parsed")
    data = archive.read(index)
    if archive.has_checksums and zlib.crc32(data) != archive.checksums[index]:
        raise Corrupt("archive.checksum_mismatch", mismatch_message(archive, index))
    return data
