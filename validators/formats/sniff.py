"""What a file that is not a torch archive is, from its first bytes and its size, so that the message can name it."""

import msgspec

from ..inspection import Format

HEAD_BYTES = 4096

_TAR_MEMBERS = (b"sys_info", b"pickle", b"tensors", b"storages")
"""What the tar files of the first versions of torch hold: torch/serialization.py, `legacy_load`."""
_TAR_BLOCK_BYTES = 512
_TAR_EXTENDED = (b"x", b"g")
"""Kinds of headers that precede a member's own: POSIX pax, which tarfile writes for what ustar cannot say."""

_BINARY: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (257, b"ustar", "a tar archive"),
    (4, b"TFL3", "a TensorFlow Lite model"),
)


class Sniffed(msgspec.Struct, frozen=True):
    """What was recognised, as a finding."""

    format: Format
    code: str
    message: str


def sniff(head: bytes, size: int) -> Sniffed:
    """Name a file by its first `HEAD_BYTES` bytes and its size in bytes."""
    if size == 0:
        return _no_checkpoint("the file is empty")
    if not head.strip(b"\0"):
        return _no_checkpoint("the file begins with nothing but zeros: space was set aside, but no data written to it")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return _no_checkpoint("the file is a Git LFS pointer, not the checkpoint: `git lfs pull` fetches it")
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return Sniffed(Format.UNKNOWN, "format.unsupported", "the file is a bare pickle, not one of torch.save")
    if _is_torch_tar(head):
        message = (
            "the file is a tar archive as torch.save wrote it before version 0.1.10: load it with "
            "torch.load(path, weights_only=False) if you trust where it came from, and save it again"
        )
        return Sniffed(Format.TORCH_TAR, "format.unsupported", message)
    for offset, mark, what in _BINARY:
        if head[offset : offset + len(mark)] == mark:
            return Sniffed(Format.UNKNOWN, "format.unsupported", f"the file is {what}")
    return _text(head) or _onnx(head) or Sniffed(Format.UNKNOWN, "format.unknown", _unknown(head))


def _is_torch_tar(head: bytes) -> bool:
    """Whether the first member of a tar archive is one of those of torch, extended headers left aside."""
    position = 0
    while head[position + 257 : position + 262] == b"ustar":
        header = head[position : position + _TAR_BLOCK_BYTES]
        if header[156:157] not in _TAR_EXTENDED:
            return header[:100].rstrip(b"\0").removeprefix(b"./") in _TAR_MEMBERS
        digits = header[124:136].strip(b"\0 ")
        size = int(digits, 8) if digits and set(digits) <= set(b"01234567") else 0
        position += _TAR_BLOCK_BYTES * (1 + -(-size // _TAR_BLOCK_BYTES))
    return False


def _unknown(head: bytes) -> str:
    return f"the file begins with the bytes {head[:8].hex(' ')}, which no known format does"


def _no_checkpoint(message: str) -> Sniffed:
    return Sniffed(Format.UNKNOWN, "format.not_a_checkpoint", message)


def _text(head: bytes) -> Sniffed | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:256].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return _no_checkpoint("the file is an HTML page: a download has saved a login or error page instead")
    if start.startswith(b"<?xml"):
        return _no_checkpoint("the file is an XML document, as object stores answer errors")
    if b"\0" in head or not _is_utf8(head):
        return None
    if start[:1] in (b"{", b"["):
        return _no_checkpoint("the file is a JSON text")
    return _no_checkpoint("the file is a text")


def _onnx(head: bytes) -> Sniffed | None:
    # ModelProto: field 1 (ir_version) as varint, then field 2 (producer_name) or 7 (graph): onnx.proto
    if head[:1] == b"\x08" and len(head) > 3 and head[1] < 0x20 and head[2] in (0x12, 0x3A):
        return Sniffed(Format.UNKNOWN, "format.unsupported", "the file looks like an ONNX model")
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 4 and error.start > 0  # cut inside the last character
    return True
