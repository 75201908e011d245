"""What lies beside a checkpoint, read: its sidecars, and the training's config."""

from collections.abc import Sequence

import msgspec

from ckptd.validators.errors import Unreadable
from ckptd.validators.inspection import FileIdentity, Plain
from ckptd.validators.reader import FileReader

from .description import SidecarStatus
from .documents import MAX_BYTES, DocumentError, load_document
from .entry import shown_path
from .metadata import MetadataError, ParsedMetadata, parse_metadata
from .opening import identity_of_opened
from .redaction import Redactor
from .run_facts import unwrapped
from .sidecar import status_of


class ReadSidecar(msgspec.Struct, frozen=True, kw_only=True):
    """One sidecar."""

    name: str
    identity: FileIdentity
    data: bytes = b""
    parsed: ParsedMetadata | None = None
    problem: str | None = None
    """Why it is not understood."""


class ReadConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The config; everything is None where there is none."""

    identity: FileIdentity | None = None
    value: Plain = None
    problem: str | None = None
    """Why it is not understood."""


def read_sidecar(name: bytes, fd: int) -> ReadSidecar:
    """Read an opened sidecar. What is wrong with it is its `problem`.

    Raises:
        Unreadable: the system refuses to tell its identity.
    """
    shown = shown_path(name)[0]
    # A sidecar that changes while it is read shows by its identity, which is the one before the reading.
    identity = identity_of_opened(fd)
    try:
        data = _read_whole(fd)
        parsed = parse_metadata(data, is_json=name.endswith(b".json"))
    except (MetadataError, Unreadable) as error:
        return ReadSidecar(name=shown, identity=identity, problem=str(error))
    return ReadSidecar(name=shown, identity=identity, data=data, parsed=parsed)


def read_config(name: bytes | None, fd: int | None) -> ReadConfig:
    """Read an opened config, if there is one. What is wrong with it is its `problem`.

    Raises:
        Unreadable: the system refuses to tell its identity.
    """
    if name is None or fd is None:
        return ReadConfig()
    identity = identity_of_opened(fd)
    try:
        value = load_document(_read_whole(fd), is_json=name.endswith(b".json"))
    except (DocumentError, Unreadable) as error:
        return ReadConfig(identity=identity, problem=str(error))
    if not isinstance(value, dict):
        return ReadConfig(identity=identity, problem="it holds no keys and values")
    return ReadConfig(identity=identity, value=unwrapped(value))


def redacted(sidecar: ReadSidecar, redactor: Redactor) -> ReadSidecar:
    """The same without what nobody shall read. Its bytes stay: a repair must not lose what a person wrote."""
    parsed = None if sidecar.parsed is None else redactor.sidecar(sidecar.parsed)
    return msgspec.structs.replace(sidecar, parsed=parsed)


def status_for(sidecar: ReadSidecar, size_bytes: int, archive_id: str | None) -> SidecarStatus:
    """Whose it is, and whether it describes this state of the checkpoint."""
    source = None if sidecar.parsed is None else sidecar.parsed.metadata.source
    return status_of(sidecar.data, source, size_bytes=size_bytes, archive_id=archive_id)


def choose(judged: Sequence[tuple[ReadSidecar, SidecarStatus]]) -> tuple[SidecarStatus, ParsedMetadata | None]:
    """The sidecar that counts: a person's or training's first, then ours, then the first in order of consulting."""
    for wanted in (SidecarStatus.FOREIGN, SidecarStatus.OURS):
        for sidecar, status in judged:
            if status is wanted:
                return status, sidecar.parsed
    return (judged[0][1], judged[0][0].parsed) if judged else (SidecarStatus.NONE, None)


def _read_whole(fd: int) -> bytes:
    return FileReader(fd).read(0, MAX_BYTES + 1)
