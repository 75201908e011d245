"""A child that a file took over: it says what the file asks for, in the name of the parser.

The zygote and the walls are the real ones. The file's first word names the forgery.
"""

import contextlib
import datetime as dt
import os
import pathlib
import stat
import struct
import sys
from typing import NoReturn

import msgspec

from ckptd.catalog.description import CheckpointMetadata, DescribeRequest, Description, OpenedFiles
from ckptd.daemon import zygote
from ckptd.daemon.answers import Described
from ckptd.daemon.child import PROGRESS
from ckptd.validators.inspection import CallbackState, Inspection
from ckptd.validators.reader import FileReader

REPOSITORY = str(pathlib.Path(__file__).resolve().parents[2])
COMMAND = (
    *(sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c"),
    f"import sys; sys.path.insert(0, {REPOSITORY!r}); from tests.daemon.forged_answers import serve; serve()",
)
UNTOLD: dict[str, object] = {
    "extension": msgspec.msgpack.Ext(5, b"x"),
    "key-none": {None: 1},
    "key-tuple": {(1, 2): 1},
    "key-bool": {True: 1},
    "key-none-inside": [{"a": [{None: 1}]}],
}
"""What msgpack can say and JSON cannot."""
TOLD: dict[str, object] = {
    "nothing": None,
    "nan": float("nan"),
    "time": {"a": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)},
    "bytes": b"\xff",
    "key-bytes": [{b"\xff": 1}],
    "escapes": "\x1b[2J\r\n\r\ndata: {}\u2028</script>",
}
EMPTY_LISTS = 6_000_000
_MARK = b"\xa8THE-MARK"


def serve() -> NoReturn:
    """What `COMMAND` runs."""
    zygote.main(run)


def run(request: DescribeRequest, files: OpenedFiles) -> Description:
    """Say what the file asks for."""
    reader = FileReader(files.checkpoint)
    place, _, word = reader.read(0, 100).decode("ascii").partition(" ")
    inspection = Inspection(checkpoint_path=request.checkpoint_path, identity=reader.identity)
    honest = Description(inspection=inspection, findings=(), metadata=CheckpointMetadata())
    if place == "raw":
        _say(files, _RAW[word](honest))
    if place == "owners":
        return msgspec.structs.replace(honest, config=_owners(files))
    value = (UNTOLD | TOLD)[word]
    inside = msgspec.structs.replace(inspection, hyper_parameters={"a": value})
    state = msgspec.structs.replace(inspection, callbacks=(CallbackState(key="a", kind="b", state={"a": value}),))
    return {
        "config": msgspec.structs.replace(honest, config=value),
        "user": msgspec.structs.replace(honest, user={"a": value}),
        "hyper_parameters": msgspec.structs.replace(honest, inspection=inside),
        "callbacks": msgspec.structs.replace(honest, inspection=state),
    }[place]


def _owners(files: OpenedFiles) -> list[int]:
    """Whose files this child holds, its own and those of the jobs beside it."""
    owners = []
    for descriptor in range(3, files.checkpoint + 240):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink:  # not the memory file of the answers
                owners.append(status.st_uid)
    return owners


def _piece(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _explosion(honest: Description) -> bytes:
    """Empty lists: each is one byte, and 72 once it is decoded."""
    encoded = msgspec.msgpack.encode(Described(msgspec.structs.replace(honest, config="THE-MARK"), 0))
    return _piece(encoded.replace(_MARK, b"\xdd" + struct.pack(">I", EMPTY_LISTS) + b"\x90" * EMPTY_LISTS))


def _nested_explosion(honest: Description) -> bytes:
    """The same in lists of fifteen."""
    encoded = msgspec.msgpack.encode(Described(msgspec.structs.replace(honest, config="THE-MARK"), 0))
    count = EMPTY_LISTS // 16
    return _piece(encoded.replace(_MARK, b"\xdd" + struct.pack(">I", count) + (b"\x9f" + b"\x90" * 15) * count))


def _many_pieces(honest: Description) -> bytes:
    count = EMPTY_LISTS // 5
    return _piece(msgspec.msgpack.encode(Described(honest, count))) + _piece(b"\x90") * count


_RAW = {"explosion": _explosion, "nested-explosion": _nested_explosion, "pieces": _many_pieces}
RAW = tuple(_RAW)


def _say(files: OpenedFiles, data: bytes) -> NoReturn:
    """Answer with bytes of one's own. The descriptors of the answer precede the checkpoint's."""
    view = memoryview(data)
    while view:
        view = view[os.write(files.checkpoint - 2, view) :]
    os.write(files.checkpoint - 1, PROGRESS.pack(len(data)))
    os._exit(0)
