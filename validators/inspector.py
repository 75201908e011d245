"""inspect_checkpoint(path, level): format → facts → checks → Inspection; the one door of this package."""

import contextlib
import gc
import itertools
import os
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec

from . import facts, fingerprint
from .checks import safety
from .checks.checksum import mismatch_message, mismatches, verify_archive
from .checks.structure import check_structure, limited
from .errors import Changed, Corrupt, Incomplete, Unreadable
from .findings import Finding, finding
from .formats import torch_zip
from .formats.sniff import HEAD_BYTES, sniff
from .inspection import Format, Inspection, Level, Safety, Seal, TensorInfo
from .plain import clip
from .reader import FileReader
from .scalars import ScalarReader
from .tensors import TensorTable
from .unpickle import InertPickle, load_inert

MAX_PICKLE_BYTES = 512 * 1024 * 1024
"""Largest `data.pkl` that is parsed. That of 20,000 tensors has 2.3 MB; its stand-ins take about 15 times its size."""

_ATTEMPTS = 3
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def inspect_checkpoint(path: str | os.PathLike[str], level: Level = Level.STRUCTURE) -> Inspection:
    """Inspect one file in this process. Nothing in it is executed; at level `structure` no tensor is read.

    A hostile file can exhaust the memory, the stack or the time of the process that parses it (see `unpickle`); where
    that matters, use the worker pool, as the daemon and the command line do.

    Args:
        path: a regular file, or a link to one.
        level: how much to verify; `structure` or `checksum` so far.

    Raises:
        Unreadable: the file cannot be opened or read, or is no regular file.
        Changed: the file was modified during each of three attempts.
        ValueError: `level` is not available.
    """
    _check_level(level)
    for attempt in itertools.count(1):
        fd = _open(path)
        try:
            return inspect_opened(fd, os.fspath(path), level)
        except Changed:
            if attempt == _ATTEMPTS:
                raise
        finally:
            os.close(fd)
    raise AssertionError("unreachable")


def inspect_opened(fd: int, checkpoint_path: str, level: Level = Level.STRUCTURE) -> Inspection:
    """Inspect an opened file. Whatever it contains becomes findings, never an exception.

    Args:
        fd: opened for reading; the caller closes it. Its position is neither used nor changed.
        checkpoint_path: for people; never opened.
        level: how much to verify; `structure` or `checksum` so far.

    Raises:
        Changed: the file was modified meanwhile; look again.
        Unreadable: the system refused to read, or it is no regular file.
        ValueError: `level` is not available.
    """
    _check_level(level)
    reader = FileReader(fd)
    with _no_garbage_collection():
        inspection = _inspect(reader, checkpoint_path, level)
    reader.check_unchanged()
    return inspection


def _check_level(level: Level) -> None:
    if level not in (Level.STRUCTURE, Level.CHECKSUM):
        raise ValueError(f"level {str(level)!r} is not available yet; use 'structure' or 'checksum'")


def _open(path: str | os.PathLike[str]) -> int:
    try:
        return os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise Unreadable(f"{os.fspath(path)} cannot be opened: {error.strerror}", error.errno) from error
    except ValueError as error:
        raise Unreadable(f"{os.fspath(path)!r} is no possible path: {error}") from error


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The collector walks all stand-ins again and again while they grow; off, 20,000 tensors take half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _inspect(reader: FileReader, checkpoint_path: str, level: Level) -> Inspection:
    source = torch_zip.Source(reader)
    head = source.read(0, min(HEAD_BYTES, source.size))
    blank = Inspection(checkpoint_path=checkpoint_path, identity=reader.identity)
    if not torch_zip.looks_like_archive(head):
        sniffed = sniff(head, source.size)
        found = (finding(sniffed.code, sniffed.message),)
        return msgspec.structs.replace(blank, format=sniffed.format, findings=found, safety=sniffed.safety)
    blank = msgspec.structs.replace(blank, format=Format.TORCH_ZIP)
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
    inspection, table = _inspect_archive(archive, sealed)
    return inspection if level is Level.STRUCTURE else _with_checksums(archive, inspection, table)


def _with_checksums(archive: torch_zip.Archive, inspection: Inspection, table: TensorTable | None) -> Inspection:
    """`inspection` with what reading every byte showed; its level rises only where there are checksums to read by."""
    verification = verify_archive(archive)
    found = limited(mismatches(archive, verification, table))
    return msgspec.structs.replace(
        inspection,
        level=Level.CHECKSUM if archive.has_checksums else inspection.level,
        digest=verification.digest,
        # data.pkl is checked before it is parsed: its finding is there already.
        findings=(*inspection.findings, *(problem for problem in found if problem not in inspection.findings)),
    )


def _inspect_archive(archive: torch_zip.Archive, sealed: Inspection) -> tuple[Inspection, TensorTable | None]:
    """What an archive holds, and its tensors where they are known."""
    try:
        return _inspect_records(archive, sealed)
    except Corrupt as error:
        return msgspec.structs.replace(sealed, findings=(finding(error.code, error.message),)), None


def _inspect_records(archive: torch_zip.Archive, sealed: Inspection) -> tuple[Inspection, TensorTable | None]:
    if archive.find("constants.pkl") is not None:
        found = (finding("format.unsupported", "the file is a TorchScript program, as torch.jit.save writes"),)
        return msgspec.structs.replace(sealed, format=Format.TORCHSCRIPT, findings=found), None
    index = archive.find("data.pkl")
    if index is None:
        found = (finding("format.unknown", "the file is a zip archive, but without the data.pkl of torch.save"),)
        return msgspec.structs.replace(sealed, format=Format.UNKNOWN, findings=found), None
    pickle = _read_pickle(archive, index)
    inert = load_inert(pickle)
    proved = inert.failure is None and inert.consumed == len(pickle)
    verdict, outside, findings = safety.judge(inert.globals, proved)
    if not archive.has_checksums:
        findings.append(finding("archive.unverifiable", "the archive carries no checksums"))
    if inert.failure is not None:
        findings.append(finding(inert.failure.code, inert.failure.message))
    elif inert.consumed != len(pickle):
        message = f"{len(pickle) - inert.consumed:,} bytes follow the end of the pickle in data.pkl"
        findings.append(finding("pickle.second_stream", message))
    judged = msgspec.structs.replace(
        sealed,
        safety=verdict,
        unsafe_globals=outside,
        archive_id=fingerprint.archive_id(archive, pickle),
        findings=tuple(findings),
    )
    return (judged, None) if inert.failure is not None else _describe(archive, inert, judged)


def _read_pickle(archive: torch_zip.Archive, index: int) -> bytes:
    """The bytes of data.pkl, once their size and checksum have been found right: damage makes a parser run wild."""
    size = archive.sizes[index]
    if size > MAX_PICKLE_BYTES:
        raise Corrupt("pickle.limits", f"data.pkl has {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are parsed")
    data = archive.read(index)
    if archive.has_checksums and zlib.crc32(data) != archive.checksums[index]:
        raise Corrupt("archive.checksum_mismatch", mismatch_message(archive, index))
    return data


def _describe(
    archive: torch_zip.Archive, inert: InertPickle, judged: Inspection
) -> tuple[Inspection, TensorTable | None]:
    findings = list(judged.findings)
    try:
        tensors = facts.find_tensors(inert.value)
    except Corrupt as error:
        return msgspec.structs.replace(judged, findings=(*findings, finding(error.code, error.message))), None
    findings += limited((problem.code, problem.message) for problem in tensors.problems)
    findings += check_structure(tensors.table, archive)
    weights = tensors.of("weights")
    if not weights:
        findings.append(finding("state_dict.missing", "no dictionary of tensors was found in the checkpoint"))
    has_problems = any(f.code in ("tensor.missing_storage", "tensor.out_of_bounds") for f in findings)
    counted = facts.weight_facts(weights)
    top, scalars = _top(inert.value), ScalarReader(archive, big_endian=_is_big_endian(archive))
    epoch, global_step = facts.progress(top, scalars)
    hyper_parameters = facts.hyper_parameters(top, scalars)
    described = msgspec.structs.replace(
        judged,
        safety=_with_instantiator(judged.safety, top, findings),
        tensors=tuple(_tensor_infos(tensors)),
        has_state_dict=bool(weights),
        n_parameters=counted.n_parameters,
        parameters_by_part=counted.parameters_by_part,
        weights_bytes=counted.weights_bytes,
        dtypes=counted.dtypes,
        optimizer_bytes=facts.bytes_of(tensors.of("optimizer")),
        epoch=epoch,
        global_step=global_step,
        lightning_version=facts.lightning_version(top),
        hyper_parameters=hyper_parameters,
        callbacks=facts.callbacks(top, scalars),
        metrics=facts.metrics(top, scalars),
        content_id=None if has_problems else _content_id(archive, weights),
        findings=tuple(findings),
    )
    return described, tensors.table


def _top(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _is_big_endian(archive: torch_zip.Archive) -> bool:
    index = archive.find("byteorder")
    return index is not None and archive.sizes[index] < 64 and archive.read(index) == b"big"


def _with_instantiator(verdict: Safety, top: dict[Any, Any], findings: list[Finding]) -> Safety:
    """Lightning's `load_from_checkpoint` imports and calls what `_instantiator` names, whatever `weights_only` says."""
    parameters = top.get("hyper_parameters")
    if not isinstance(parameters, dict) or safety.INSTANTIATOR not in parameters:
        return verdict
    named = parameters[safety.INSTANTIATOR]
    what = clip(named) if isinstance(named, str) else "something"
    message = f"hyper_parameters hold _instantiator: load_from_checkpoint would import and call {what}"
    findings.append(finding("pickle.dangerous_name", message))
    return Safety.UNSAFE


def _tensor_infos(tensors: facts.Tensors) -> Iterator[TensorInfo]:
    table = tensors.table
    dtypes = [dtype.name for dtype in table.dtypes]
    sizes = [numel * dtype.itemsize for numel, dtype in zip(table.numels, table.dtypes, strict=True)]
    roles = itertools.chain.from_iterable(itertools.repeat(s.role, len(s.table)) for s in tensors.segments)
    columns = (table.names, dtypes, table.shapes, table.strides, table.keys, table.offsets, sizes, roles, table.grads)
    infos = map(TensorInfo, *columns)
    return itertools.compress(infos, [not hidden for hidden in table.hidden]) if any(table.hidden) else infos


def _content_id(archive: torch_zip.Archive, weights: list[facts.Segment]) -> str | None:
    # With several state dicts in one file (`generator_state_dict`, …) their keys are part of the names.
    if len(weights) == 1:
        return fingerprint.content_id(archive, [(weights[0].table, weights[0].relative_names)])
    return fingerprint.content_id(archive, [(segment.table, segment.table.names) for segment in weights])
