"""The inert unpickler: names become stand-ins, nothing is imported, nothing is called.

The opcodes are run by CPython's own C unpickler, so whatever a hostile stream does to hide a name (INST, STACK_GLOBAL
with built strings, memo tricks) ends in `find_class` here exactly as it would in `torch.load`. What remains possible
is to kill or stall the process: a tuple nested 130,000 deep as a key overflows the C stack, a 300 byte stream can hash
for hours, LONG_BINPUT and BINBYTES8 can ask for gigabytes. A scan of the opcodes beforehand would see some of that, but
costs 20 times the parsing itself (pickletools: 0.7 µs per opcode, and a 20,000 tensor checkpoint has 600,000). So
untrusted files belong in a process with limits, which is where the daemon parses them.
"""

import _compat_pickle
import copyreg
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import msgspec

from . import standins
from .dtypes import DTYPES, STORAGE_DTYPES, UINT8
from .errors import Changed, Corrupt, Unreadable
from .plain import clip
from .tally import Tally, new_tally

__all__ = ["MAX_GLOBALS", "InertPickle", "LimitReached", "load_inert", "load_stream", "names_behind"]

MAX_GLOBALS = 10_000
"""Distinct names in one pickle. Real checkpoints have 4 to 200; 200,000 cost 3 s and 340 MB."""

MAX_STREAMS = 8
"""Pickles that are parsed behind the end of one that nothing should follow."""


class InertPickle(msgspec.Struct, frozen=True):
    """What a pickle holds, without anything of it having run."""

    value: Any
    """Plain data and stand-ins; None after a failure."""
    globals: tuple[str, ...]
    """Every name that the stream asked for, `module.name`, in order of appearance, up to a failure."""
    consumed: int
    """Bytes up to and with STOP. Fewer than given: a second stream or junk follows."""
    tally: Tally
    """What its opcodes were applied to."""
    failure: Corrupt | None = None
    """Why the stream could not be parsed to its end."""


class LimitReached(Exception):
    """Raised when a stream asks for more than any real checkpoint needs."""


class _InertUnpickler(pickle.Unpickler):
    # A class, not a method: the C unpickler then builds each persistent id without a Python frame.
    persistent_load = standins.Storage

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.resolved: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        found = self.resolved.get(key)
        if found is None:
            if len(self.resolved) >= MAX_GLOBALS:
                raise LimitReached(f"more than {MAX_GLOBALS:,} different names")
            found = self.resolved[key] = _stand_in(*canonical_name(module, name))
        return found


def load_inert(data: bytes) -> InertPickle:
    """Parse one pickle into plain data and stand-ins.

    Never raises for what `data` holds; it may still exhaust the process's stack, memory or time (see the module).
    Callers that care for speed turn the garbage collector off meanwhile: it doubles the time at 15,000 tensors.
    """
    # Only a buffered file has `peek`, and only with it does the C unpickler read by buffer, not by call: 2.7 times.
    file = io.BufferedReader(io.BytesIO(data), len(data) + 1)
    return _load(_InertUnpickler(file), file)


def names_behind(data: bytes) -> tuple[str, ...]:
    """The names that pickles ask for which follow the end of another, one after the other, up to the first failure."""
    names: list[str] = []
    for _ in range(MAX_STREAMS):
        inert = load_inert(data)
        names += inert.globals
        if inert.failure is not None or not inert.consumed:
            break
        data = data[inert.consumed :]
    return tuple(names)


def load_stream(file: "io.BufferedReader[Any]", persistent_load: Callable[[Any], Any]) -> InertPickle:
    """As `load_inert`, from where `file` stands, which then stands behind the pickle.

    Args:
        file: seekable. What its reads raise becomes the failure.
        persistent_load: takes each persistent id and returns what stands for it; what it raises becomes the failure.
    """

    class Unpickler(_InertUnpickler):
        pass

    Unpickler.persistent_load = staticmethod(persistent_load)  # type: ignore[assignment]
    return _load(Unpickler(file), file)


def _load(unpickler: _InertUnpickler, file: "io.BufferedReader[Any]") -> InertPickle:
    start = file.tell()
    value, failure, tally = None, None, new_tally()
    try:
        if copyreg._extension_cache:  # type: ignore[attr-defined]  # noqa: SLF001
            _refuse_extensions(file)
        value = unpickler.load()
    except (MemoryError, RecursionError, LimitReached) as error:
        failure = Corrupt("pickle.limits", f"parsing of the pickle was stopped: {_reason(error)}")
    except (Changed, Unreadable):  # the file's, not the stream's
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes raise whatever they like, see FACTS in the tests
        failure = Corrupt("pickle.malformed", f"the pickle cannot be parsed: {_reason(error)}")
    names = tuple(".".join(canonical_name(*key)) for key in unpickler.resolved)
    return InertPickle(value, names, file.tell() - start, tally, failure)


def canonical_name(module: str, name: str) -> tuple[str, str]:
    """The name as Python 3 knows it: protocols 0 to 2 use Python 2's (`__builtin__`, `copy_reg`)."""
    renamed = _compat_pickle.NAME_MAPPING.get((module, name))
    if renamed is not None:
        return renamed
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def _stand_in(module: str, name: str) -> Any:
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    if name in STORAGE_DTYPES and module in ("torch", "torch.cuda", "torch.storage"):
        return STORAGE_DTYPES[name]
    known = _KNOWN.get((module, name))
    return standins.opaque_class(f"{module}.{name}") if known is None else known


def _refuse_extensions(file: "io.BufferedReader[Any]") -> None:
    """EXT opcodes are looked up in a cache of *real* objects, past `find_class`, if this process filled that cache."""
    start = file.tell()
    for opcode, _argument, _position in pickletools.genops(file):
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"{opcode.name}: extension codes are refused")
    file.seek(start)


def _reason(error: BaseException) -> str:
    # str(error) may format the file's own objects without bounds; only a plain message is repeated.
    message = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return f"{type(error).__name__}: {clip(message)}" if message else type(error).__name__


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): standins.InertDict,
    # tuple is immutable, class and instance alike: nothing can be set on it.
    ("torch", "Size"): tuple,
    ("builtins", "getattr"): standins.Attribute,
    ("torch", "device"): standins.Device,
    ("torch", "UntypedStorage"): UINT8,
    ("torch.storage", "UntypedStorage"): UINT8,
    ("torch._utils", "_rebuild_tensor"): standins.Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): standins.Tensor,
    ("torch._utils", "_rebuild_tensor_v3"): standins.TensorV3,
    ("torch._utils", "_rebuild_qtensor"): standins.QuantizedTensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): standins.MetaTensor,
    ("torch._utils", "_rebuild_wrapper_subclass"): standins.WrapperSubclass,
    ("torch._utils", "_rebuild_sparse_tensor"): standins.SparseTensor,
    ("torch._utils", "_rebuild_nested_tensor"): standins.NestedTensor,
    ("torch.nested._internal.nested_tensor", "_rebuild_njt"): standins.JaggedTensor,
    ("torch._utils", "_rebuild_parameter"): standins.Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): standins.Parameter,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): standins.DeviceTensor,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): standins.DeviceTensor,
    ("torch._utils", "_rebuild_xla_tensor"): standins.DeviceTensor,
    ("torch._tensor", "_rebuild_from_type_v2"): standins.FromType,
}
"""(module, name) → stand-in, for the functions that rebuild tensors. All else becomes an `Opaque`."""
