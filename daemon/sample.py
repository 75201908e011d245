"""A small checkpoint with sidecar and config, made here, on which a process gets warm before it sees a foreign file.

A forked process is cold: each page it writes to is copied first, and each function that never ran is slow. A child that
has described this sample once describes the next small file four times as fast.
"""

import struct
import zlib
from collections.abc import Iterable

SIDECAR = b"""\
schema_version: '1.0'
exp_name: sample
created_at: 2025-01-01T00:00:00Z
training: {epoch: 1, global_step: 100, max_epochs: 10}
model:
  architecture: sample
  encoder: {model_name: resnet18, pretrained: true}
metrics: {hmean: 0.5, additional_metrics: {loss: 1.5e-3}}
checkpointing: {monitor: hmean, mode: max, save_top_k: 1, save_last: null}
"""

CONFIG = b"""\
exp_name: sample
trainer: {max_epochs: 10, precision: 32, callbacks: [a, b]}
model:
  architecture_name: sample
  encoder: {model_name: resnet18, pretrained: true}
  optimizer: {lr: 1.0e-3, betas: [0.9, 0.999]}
"""

_TENSORS = 12


def checkpoint() -> bytes:
    """The checkpoint, in the layout that Lightning and `torch.save` write (torch/serialization.py)."""
    storages = [(f"sample/data/{index}", struct.pack("<4f", 1, 2, 3, index)) for index in range(_TENSORS)]
    return _archive(
        [("sample/data.pkl", _pickle()), ("sample/byteorder", b"little"), *storages, ("sample/version", b"3\n")]
    )


def _pickle() -> bytes:
    tensors = b"".join(_text(f"model.encoder.layer{index}.weight") + _tensor(index) for index in range(_TENSORS))
    scores = b"}(" + _text("monitor") + _text("hmean") + _text("best_model_path") + _text("/a.ckpt") + b"u"
    return (
        b"\x80\x02}("  # PROTO 2, EMPTY_DICT, MARK; values are pushed in pairs until SETITEMS
        + _text("epoch") + b"K\x01"
        + _text("global_step") + b"K\x64"
        + _text("pytorch-lightning_version") + _text("2.0.0")
        + _text("state_dict") + b"}(" + tensors + b"u"
        + _text("callbacks") + b"}" + _text("ModelCheckpoint") + scores + b"s"
        + _text("hyper_parameters") + b"}" + _text("lr") + b"G" + struct.pack(">d", 0.001) + b"s"
        + b"u."
    )  # fmt: skip


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()  # BINUNICODE


def _tensor(storage: int) -> bytes:
    """A float32 tensor of shape (2, 2) over its own storage: `_rebuild_tensor_v2` (torch/_utils.py)."""
    persistent = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(storage)) + _text("cpu") + b"K\x04tQ"
    arguments = b"(" + persistent + b"K\x00" + b"K\x02K\x02\x86" + b"K\x02K\x01\x86" + b"\x89"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"ccollections\nOrderedDict\n)Rt" + b"R"


def _archive(records: Iterable[tuple[str, bytes]]) -> bytes:
    """Records stored one after the other, then the directory (PKWARE APPNOTE 6.3.10, sections 4.3.7, .12 and .16)."""
    body = directory = b""
    count = 0
    for name, data in records:
        # method 0 (stored), 1980-01-01, CRC-32, both sizes, length of the name, no extra field
        common = struct.pack("<HHHLLLHH", 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(name), 0)
        directory += b"PK\1\2" + struct.pack("<HHH", 20, 20, 0) + common
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\3\4" + struct.pack("<HH", 20, 0) + common + name.encode() + data
        count += 1
    return body + directory + b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, count, count, len(directory), len(body), 0)
