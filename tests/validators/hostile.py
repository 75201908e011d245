"""Pickles that attack whoever parses them, as found by experiment, and torch archives around them.

`KILLERS` end or stall the process even when every name is a stand-in; only another process, with limits, survives them.
"""

import io
import pickle
import struct
import zipfile

KILLERS = frozenset(
    (
        "nested_tuple_key",
        "doubling_tuple_hash",
        "colliding_ints",
        "long_binput_bomb",
        "binbytes8_bomb",
        "bytearray8_bomb",
        "empty_set_flood",
    )
)
"""Those that crash, hang or exhaust an unlimited process."""

_HEAD = b"\x80\x04"


def hostile_pickles() -> dict[str, bytes]:
    """Name → a pickle stream of that kind of attack. Some are megabytes long; none is larger than 6 MB."""
    return {**_killers(), **_floods(), **_tricks(), **_dangerous_names(), **_wrong_tensors(), **_odd_values()}


def hostile_checkpoint(name: str) -> bytes:
    """A sound torch archive, checksums included, whose `data.pkl` is the hostile pickle `name`."""
    return checkpoint_around(hostile_pickles()[name])


def checkpoint_around(data: bytes, records: dict[str, bytes] | None = None, byteorder: bytes = b"little") -> bytes:
    """A sound torch archive around any `data.pkl`. `records` are further ones, named below the stem."""
    stem = "archive"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{stem}/data.pkl", data)
        archive.writestr(f"{stem}/byteorder", byteorder)
        for record, contents in (records or {}).items():
            archive.writestr(f"{stem}/{record}", contents)
        archive.writestr(f"{stem}/version", b"3\n")
    return buffer.getvalue()


def name_opcode(module: str, name: str) -> bytes:
    """GLOBAL: push what `module.name` stands for."""
    return f"c{module}\n{name}\n".encode()


def tensor_opcodes(
    *,
    key: bytes = b"X\x01\x00\x00\x000",
    numel: bytes = b"K\x04",
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x04\x85",
    stride: bytes = b"K\x01\x85",
    storage_class: bytes = b"ctorch\nFloatStorage\n",
) -> bytes:
    """The opcodes that push one `_rebuild_tensor_v2` tensor; each argument is opcodes itself."""
    storage = b"(X\x07\x00\x00\x00storage" + storage_class + key + b"X\x03\x00\x00\x00cpu" + numel + b"tQ"
    hooks = name_opcode("collections", "OrderedDict") + b")R"
    arguments = b"(" + storage + offset + shape + stride + b"\x89" + hooks + b"t"
    return name_opcode("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def state_dict_of(tensor: bytes, name: bytes = b"w") -> bytes:
    """A whole pickle: `{"state_dict": {name: <tensor>}}`, from the tensor's opcodes."""
    key = b"X" + struct.pack("<I", len(name)) + name
    return b"\x80\x02}X\x0a\x00\x00\x00state_dict}" + key + tensor + b"ss."


def _killers() -> dict[str, bytes]:
    doubling = b"\x80\x04}K\x01\x85" + b"2\x86" * 60
    modulus = 2**61 - 1  # sys.hash_info.modulus: all these have hash 0 … and one chain of collisions
    colliding = b"".join(pickle.dumps(i * modulus, 2)[2:-1] + b"N" for i in range(1, 20_001))
    return {
        "nested_tuple_key": b"\x80\x04})" + b"\x85" * 400_000 + b"Ns.",
        "doubling_tuple_hash": doubling + b"Ns.",
        "colliding_ints": b"\x80\x04}(" + colliding + b"u.",
        "long_binput_bomb": b"\x80\x04Nr" + struct.pack("<I", 0xFFFFFFF0) + b".",
        "binbytes8_bomb": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 38) + b"x.",
        "bytearray8_bomb": b"\x80\x05\x96" + struct.pack("<Q", 1 << 38) + b"x.",
        "empty_set_flood": b"\x80\x04(" + b"\x8f" * 5_000_000 + b"t.",
    }


def _floods() -> dict[str, bytes]:
    names = b"".join(name_opcode("m", f"n{i}") + b"0" for i in range(200_000))
    return {
        "global_flood": _HEAD + names + b"N.",
        "nested_lists": _HEAD + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "nested_dicts": _HEAD + b"}" + b"N}" * 200_000 + b"s" * 200_000 + b".",
        "nested_parameters": _HEAD
        + name_opcode("torch._utils", "_rebuild_parameter")
        + b"\x94"
        + b"h\x00" * 100_000
        + b"N"
        + b"\x89N\x87R" * 100_001
        + b".",
        "nested_calls": _HEAD + name_opcode("a", "b") + b"\x94" + b"h\x00" * 100_000 + b"N" + b"\x85R" * 100_001 + b".",
        "huge_int": _HEAD + b"}X\x05\x00\x00\x00epoch\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b"s.",
        "long_text": b"\x80\x04}X\x05\x00\x00\x00epochX" + struct.pack("<I", 3_000_000) + b"x" * 3_000_000 + b"s.",
        "doubling_lists": _HEAD + b"]\x94" + b"".join(b"0](h%ch%ce\x94" % (i, i) for i in range(200)) + b".",
        "doubling_tuples_in_hyper_parameters": _HEAD
        + b"}X\x10\x00\x00\x00hyper_parameters}X\x01\x00\x00\x00aK\x01\x85"
        + b"2\x86" * 200
        + b"ss.",
    }


def _tricks() -> dict[str, bytes]:
    opaque = name_opcode("a", "B")
    ordered = name_opcode("collections", "OrderedDict")
    rebuild = name_opcode("torch._utils", "_rebuild_tensor_v2")
    slots = b"N}X\x04\x00\x00\x00nameX\x04\x00\x00\x00evils\x86"
    return {
        "build_on_class": _HEAD + opaque + slots + b"b.",
        "build_on_known_class": _HEAD + rebuild + slots + b"b.",
        "build_on_dict_class": _HEAD + ordered + slots + b"b.",
        "build_on_tuple_class": _HEAD + name_opcode("torch", "Size") + slots + b"b.",
        "build_on_dtype": _HEAD + name_opcode("torch", "float32") + slots + b"b.",
        "build_on_ordered_dict": _HEAD + ordered + b")R}X\x05\x00\x00\x00itemsNsb.",
        "build_on_plain_dict": _HEAD + b"}}X\x05\x00\x00\x00itemsNsb.",
        "newobj_of_rebuild": _HEAD + b"}X\x01\x00\x00\x00w" + rebuild + b")\x81s.",
        "newobj_of_parameter": _HEAD
        + b"}X\x01\x00\x00\x00w"
        + name_opcode("torch._utils", "_rebuild_parameter")
        + b")\x81s.",
        "newobj_ex_of_rebuild": _HEAD + rebuild + b")}\x92.",
        "second_stream": b"\x80\x04}." + b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        "junk_after_stop": b"\x80\x04}." + b"\0" * 100,
        "extension_1": _HEAD + b"\x82\x01.",
        "extension_2": _HEAD + b"\x83\x01\x00.",
        "extension_4": _HEAD + b"\x84\x01\x00\x00\x00.",
        "inst": b"(S'id'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nX\x02\x00\x00\x00ido.",
        "protocol_0": b"(dp0\nS'epoch'\np1\nI3\nsS'w'\np2\nF1.5\nsV\\u20ac\nL5L\ns.",
        "persistent_text": b"Pgarbage\n.",
        "persistent_int": _HEAD + b"K\x01Q.",
        "persistent_dict": _HEAD + b"}Q.",
        "next_buffer": b"\x80\x05\x97.",
        "readonly_buffer": b"\x80\x05N\x98.",
        "no_stop": _HEAD + b"}",
        "empty": b"",
        "only_stop": b".",
        "unknown_opcode": _HEAD + b"\xff.",
        "future_protocol": b"\x80\x63N.",
        "frame_beyond_end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "negative_long4": _HEAD + b"\x8b" + struct.pack("<i", -5) + b".",
        "bad_utf8": _HEAD + b"X\x02\x00\x00\x00\xff\xfe.",
        "get_unknown_memo": _HEAD + b"h\x05.",
    }


def _dangerous_names() -> dict[str, bytes]:
    call = b"X\x02\x00\x00\x00id\x85R."
    return {
        "os_system": _HEAD + name_opcode("os", "system") + call,
        "posix_system": _HEAD + name_opcode("posix", "system") + call,
        "eval": _HEAD + name_opcode("builtins", "eval") + call,
        "python_2_eval": b"\x80\x02" + name_opcode("__builtin__", "eval") + call,
        "exec_by_stack_global": _HEAD + b"\x8c\x08builtins\x8c\x04exec\x93" + call,
        "name_from_memo": _HEAD + b"\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93" + call,
        "dotted_name": _HEAD + b"\x8c\x05torch\x8c\x17serialization.os.system\x93" + call,
        "getattr_chain": _HEAD
        + name_opcode("builtins", "getattr")
        + name_opcode("os", "environ")
        + b"X\x03\x00\x00\x00get\x86R"
        + call,
        "partial": _HEAD + name_opcode("functools", "partial") + name_opcode("os", "system") + b"\x85R)R.",
        "nested_torch_load": _HEAD + name_opcode("torch.storage", "_load_from_bytes") + b"C\x01.\x85R.",
        "hidden_in_popped_value": _HEAD + name_opcode("subprocess", "Popen") + b"0}.",
    }


def _wrong_tensors() -> dict[str, bytes]:
    text, none, negative = b"X\x01\x00\x00\x00x", b"N", b"J\xff\xff\xff\xff"
    variants = {
        "storage_missing": {"key": b"X\x01\x00\x00\x009"},
        "key_is_int": {"key": b"K\x00"},
        "key_is_tuple": {"key": b"K\x00\x85"},
        "key_is_empty": {"key": b"X\x00\x00\x00\x00"},
        "key_climbs": {"key": b"X\x0d\x00\x00\x00../../version"},
        "numel_is_text": {"numel": text},
        "numel_negative": {"numel": negative},
        "numel_too_large": {"numel": b"K\x05"},
        "offset_is_none": {"offset": none},
        "offset_negative": {"offset": negative},
        "offset_outside": {"offset": b"K\x01"},
        "shape_is_text": {"shape": text},
        "shape_holds_text": {"shape": text + b"\x85"},
        "shape_holds_bool": {"shape": b"\x88\x85"},
        "shape_negative": {"shape": negative + b"\x85"},
        "shape_too_large": {"shape": b"K\x05\x85"},
        "shape_astronomic": {"shape": b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"},
        "shape_of_rank_5000": {"shape": b"(" + b"K\x01" * 5000 + b"t", "stride": b"(" + b"K\x01" * 5000 + b"t"},
        "stride_short": {"stride": b")"},
        "stride_negative": {"stride": negative + b"\x85"},
        "stride_outside": {"stride": b"K\x02\x85"},
        "class_is_unknown": {"storage_class": b"ctorch\nFancyStorage\n"},
        "class_is_text": {"storage_class": text},
    }
    pickles = {f"tensor_{name}": state_dict_of(tensor_opcodes(**parts)) for name, parts in variants.items()}
    rebuild = name_opcode("torch._utils", "_rebuild_tensor_v2")
    subclass = name_opcode("torch._tensor", "_rebuild_from_type_v2") + rebuild + name_opcode("torch", "Tensor")
    pickles["tensor_of_few_arguments"] = state_dict_of(rebuild + b"K\x01\x85R")
    pickles["tensor_of_plain_values"] = state_dict_of(rebuild + b"(NNNNNNtR")
    pickles["subclass_of_wrong_arguments"] = state_dict_of(b"(".join((subclass, b"K\x01tR")).replace(b"(K", b"\x81(K"))
    pickles["sparse_of_nothing"] = state_dict_of(name_opcode("torch._utils", "_rebuild_sparse_tensor") + b"NN\x86R")
    pickles["parameter_of_text"] = state_dict_of(
        name_opcode("torch._utils", "_rebuild_parameter") + b"X\x01\x00\x00\x00x\x88N\x87R"
    )
    return pickles


def _odd_values() -> dict[str, bytes]:
    return {
        "list_in_itself": _HEAD + b"]\x94h\x00a.",
        "dict_in_itself": _HEAD + b"}\x94X\x05\x00\x00\x00epochh\x00s.",
        "hyper_parameters_in_themselves": _HEAD + b"}\x94X\x10\x00\x00\x00hyper_parametersh\x00s.",
        "object_in_itself": _HEAD + name_opcode("a", "B") + b")\x81\x94h\x00b.",
        "callbacks_in_themselves": _HEAD + b"}\x94X\x09\x00\x00\x00callbacksh\x00s.",
        "lone_surrogates": _HEAD
        + b"}X\x0a\x00\x00\x00state_dict}X\x03\x00\x00\x00\xed\xa0\x80"
        + tensor_opcodes()
        + b"ss.",
        "surrogate_name": _HEAD + b"X\x03\x00\x00\x00\xed\xa0\x80\x8c\x01x\x93)R.",
        "tensor_as_key": _HEAD + b"}" + tensor_opcodes() + b"K\x01s.",
        "tensor_as_epoch": _HEAD + b"}X\x05\x00\x00\x00epoch" + tensor_opcodes() + b"s.",
        "escape_codes_in_name": state_dict_of(tensor_opcodes()).replace(
            b"\x01\x00\x00\x00w", b"\x05\x00\x00\x00\x1b[2J\n"
        ),
        "not_a_dict": _HEAD + b"K\x05.",
        "nan_epoch": _HEAD + b"}X\x05\x00\x00\x00epochG\x7f\xf8\x00\x00\x00\x00\x00\x00s.",
        "wrong_kinds_at_known_keys": _HEAD
        + b"}(X\x09\x00\x00\x00callbacks]X\x10\x00\x00\x00hyper_parametersK\x01X\x07\x00\x00\x00metrics)"
        + b"X\x0a\x00\x00\x00state_dictX\x01\x00\x00\x00xX\x0b\x00\x00\x00global_step\x88u.",
    }
