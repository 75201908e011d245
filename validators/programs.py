"""TorchScript archives: the program's modules and constants, described without compiling or running it."""

from collections.abc import Callable
from typing import Any

import msgspec

from . import facts, fingerprint
from .assembly import describe_tensors
from .checks import safety
from .errors import Corrupt
from .findings import Finding, finding
from .formats import torchscript
from .formats.torch_zip import Archive
from .inspection import Format, Inspection
from .levels import Located
from .plain import clip
from .text import counted
from .unpickle import InertPickle

ReadPickle = Callable[[Archive, int], bytes]
"""Reads a record whose checksum has been found right; raises `Corrupt`."""


def inspect_program(archive: Archive, sealed: Inspection, read: ReadPickle) -> tuple[Inspection, Located | None]:
    """Describe a TorchScript archive. It is valid, and never called safe: it is a program.

    Args:
        archive: for which `torchscript.looks_like_program` holds.
        sealed: what is known so far.
        read: of the two pickles.
    """
    sealed = msgspec.structs.replace(sealed, format=Format.TORCHSCRIPT, weights_only=False)
    try:
        return _inspect(archive, sealed, read)
    except Corrupt as error:
        return msgspec.structs.replace(sealed, findings=(finding(error.code, error.message),)), None


def _inspect(archive: Archive, sealed: Inspection, read: ReadPickle) -> tuple[Inspection, Located | None]:
    index, constants_index = archive.find("data.pkl"), archive.find("constants.pkl")
    if index is None or constants_index is None:
        raise Corrupt("archive.malformed", "the file is a TorchScript archive without the data.pkl of its root module")
    pickles = read(archive, index), read(archive, constants_index)
    data, constants = torchscript.load_data(pickles[0]), torchscript.load_constants(pickles[1])
    judged = _judge(sealed, data, constants, [*_streams(pickles, (data, constants)), *_unverifiable(archive)])
    judged = msgspec.structs.replace(judged, archive_id=fingerprint.archive_id(archive, pickles[0]))
    if data.failure is not None or constants.failure is not None:
        return judged, None
    judged = _with_program(judged, data.value)
    beside = {torchscript.CONSTANTS: torchscript.constants_by_name(constants.value)}
    try:
        split = torchscript.splitter(torchscript.read_members(archive))
        tensors = facts.find_tensors(data.value, beside, split)
    except Corrupt as error:
        found = finding(error.code, error.message)
        return msgspec.structs.replace(judged, findings=(*judged.findings, found)), None
    storages = torchscript.ProgramStorages(archive)
    return describe_tensors(tensors, {}, storages, judged), Located(tensors.table, storages)


def _judge(sealed: Inspection, data: InertPickle, constants: InertPickle, findings: list[Finding]) -> Inspection:
    """torch.load hands the file to torch.jit.load, or refuses it under weights_only=True; neither imports a name."""
    names = torchscript.python_names((*data.globals, *constants.globals))
    judgement = safety.judge(names, proved=False, accepted=False)
    judged = msgspec.structs.replace(judgement.of(sealed), imports=(), weights_only=False)
    return msgspec.structs.replace(judged, findings=(*judgement.findings, *findings))


def _streams(pickles: tuple[bytes, bytes], parsed: tuple[InertPickle, InertPickle]) -> list[Finding]:
    found: list[Finding] = []
    for name, pickle, inert in zip(("data.pkl", "constants.pkl"), pickles, parsed, strict=True):
        if inert.failure is not None:
            found.append(finding(inert.failure.code, f"{inert.failure.message} (in {name})"))
        elif inert.consumed != len(pickle):
            message = f"the pickle in {name} is followed by {counted(len(pickle) - inert.consumed, 'byte')}"
            found.append(finding("pickle.second_stream", message))
    return found


def _unverifiable(archive: Archive) -> list[Finding]:
    return [] if archive.has_checksums else [finding("archive.unverifiable", "the archive carries no checksums")]


def _with_program(judged: Inspection, root: Any) -> Inspection:
    name = torchscript.class_name(root)
    whose = "" if name is None else f" of {clip(name)}"
    found = [
        finding("torchscript.program", f"the file is a TorchScript program{whose}: loading it compiles and runs it")
    ]
    if name is None:
        found.append(finding("pickle.malformed", "data.pkl holds no object of a class of the program"))
    return msgspec.structs.replace(
        judged, model_class=None if name is None else clip(name), findings=(*judged.findings, *found)
    )
