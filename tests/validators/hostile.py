"""Pickles that attack whoever parses them, as found by experiment, and torch archives around them.

`KILLERS` end or stall the process even when every name is a stand-in; only another process, with limits, survives them.
"""

import functools
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
        "memo_bomb",
        "doubling_frozenset",
    )
)
"""Those that crash, hang or exhaust an unlimited process."""

_HEAD = b"\x80\x04"


@functools.cache
def hostile_pickles() -> dict[str, bytes]:
    """Name → a pickle stream of that kind of attack. Some are megabytes long; none is larger than 6 MB."""
    return {
        **_killers(),
        **_floods(),
        **_tricks(),
        **_lengths(),
        **_dangerous_names(),
        **_odd_names(),
        **_wrong_tensors(),
        **_odd_values(),
    }


def containers(data: bytes) -> dict[str, bytes]:
    """The same pickle wherever a reader meets one: kind of file and place → the file."""
    harmless = b"\x80\x02}."
    program = {"code/__torch__/net.py": b"", "data/0": b"\0" * 16}
    return {
        "zip": checkpoint_around(data, {"data/0": b"\0" * 16}),
        "legacy, object": _legacy(main=data),
        "legacy, version": _legacy(version=data),
        "legacy, system": _legacy(system=data),
        "legacy, storages": _legacy(keys=data),
        "TorchScript, data": checkpoint_around(data, {**program, "constants.pkl": b"\x80\x02)."}),
        "TorchScript, constants": checkpoint_around(harmless, {**program, "constants.pkl": data}),
        "behind the end": checkpoint_around(harmless + data, {"data/0": b"\0" * 16}),
    }


def _legacy(
    version: bytes = b"\x80\x02M\xe9\x03.",
    system: bytes = b"\x80\x02}.",
    main: bytes = b"\x80\x02}.",
    keys: bytes = b"\x80\x02].",
) -> bytes:
    magic = b"\x80\x02\x8a\x0a" + bytes.fromhex("6cfc9c46f9206aa85019") + b"."
    return magic + version + system + main + keys


def hostile_headers() -> dict[str, bytes]:
    """Name → a safetensors file whose JSON header attacks its reader. None is larger than 6 MB."""
    tensor = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    depth, many = 100_000, 40_000
    headers = {
        "deep lists": b'{"a":' + b"[" * depth + b"]" * depth + b"}",
        "deep objects": b'{"a":' * depth + b"1" + b"}" * depth,
        "deep metadata": b'{"__metadata__":' + b'{"a":' * depth + b'"b"' + b"}" * (depth + 1),
        "unclosed": b'{"a":' + b"[" * depth,
        "the same name twice": b'{"w":' + tensor + b',"w":' + tensor + b"}",
        "the same field twice": b'{"w":{"dtype":"F32","dtype":"I8","shape":[1],"data_offsets":[0,4]}}',
        "a huge integer": b'{"w":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,4]}}',
        "a huge float": b'{"w":{"dtype":"F32","shape":[1e999999],"data_offsets":[0,4]}}',
        "not a number": b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
        "infinity": b'{"w":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,4]}}',
        "a shape that overflows": b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        "a shape of many sides": b'{"w":{"dtype":"F32","shape":[' + b"1," * 99_999 + b'1],"data_offsets":[0,4]}}',
        "a product of many sides": b'{"w":{"dtype":"F32","shape":[' + b"9," * 99_999 + b'9],"data_offsets":[0,4]}}',
        "a negative side": b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        "a side of text": b'{"w":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}',
        "a side that is true": b'{"w":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        "offsets the wrong way round": b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        "offsets far away": b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}}' % (2**63 - 4, 2**63),
        "an unknown type": b'{"w":{"dtype":"\\u0000\\ud800","shape":[1],"data_offsets":[0,4]}}',
        "half a character": b'{"\\ud800":' + tensor + b"}",
        "escape codes": b'{"\\u001b[2J":' + tensor + b"}",
        "a name of megabytes": b'{"' + b"n" * 3_000_000 + b'":' + tensor + b"}",
        "a list": b"[" + tensor + b"]",
        "two documents": b'{"w":' + tensor + b"}{}",
        "not UTF-8": b'{"\xff\xfe":' + tensor + b"}",
        "a NUL": b'{"w":' + tensor + b"}\0\0\0",
        "metadata of lists": b'{"__metadata__":[],"w":' + tensor + b"}",
        "metadata of numbers": b'{"__metadata__":{"a":1},"w":' + tensor + b"}",
        "much metadata": b'{"__metadata__":{'
        + b",".join(b'"k%d":"v"' % n for n in range(many))
        + b'},"w":'
        + tensor
        + b"}",
        "many empty tensors": b"{"
        + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(many))
        + b"}",
        "spaces": b"{" + b" " * 5_000_000 + b'"w":' + tensor + b"}",
    }
    files = {name: struct.pack("<Q", len(header)) + header + bytes(4) for name, header in headers.items()}
    files["a length beyond the limit"] = struct.pack("<Q", 100_000_001) + b"{}" + bytes(4)
    files["a length beyond all files"] = struct.pack("<Q", 1 << 63) + b"{}" + bytes(4)
    return files


def hostile_texts() -> dict[str, bytes]:
    """Name → a YAML document that attacks its reader. None is larger than 3 MB."""
    laughs = b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12))
    return {
        "a call": b"a: !!python/object/apply:os.system [id]",
        "a name": b"a: !!python/name:os.system",
        "a module": b"a: !!python/module:antigravity",
        "a new object": b"!!python/object/new:type\nargs: [z, !!python/tuple [], {extend: !!python/name:exec }]",
        "a billion laughs": b"a0: &a0 lol\n" + laughs,
        "an alias to itself": b"&a [*a]",
        "a merge of itself": b"a: &a\n  <<: *a",
        "deep flow lists": b"a: " + b"[" * 5000,
        "deep flow maps": b"{a: " * 5000,
        "deep blocks": b"".join(b" " * n + b"a:\n" for n in range(1500)),
        "deep sequences": b"- " * 5000,
        "a huge integer": b"training: {epoch: " + b"9" * 100_000 + b"}",
        "a huge base 60 integer": b"training: {epoch: 1" + b":59" * 20_000 + b"}",
        "a huge hexadecimal": b"training: {epoch: 0x" + b"f" * 100_000 + b"}",
        "a huge float": b"metrics: {hmean: 1e999999999}",
        "binary": b"a: !!binary " + b"QUFB" * 10_000,
        "a complex key": b"? [a, b]\n: 1\n? {c: d}\n: 2",
        "the same key twice": b"exp_name: a\nexp_name: b",
        "a NUL": b"a: \x00",
        "escape codes": b'exp_name: "\\e[2J\\0"',
        "UTF-16": "exp_name: a".encode("utf-16"),
        "not UTF-8": b"exp_name: \xff\xfe",
        "half a character": b'exp_name: "\\ud800"',
        "many documents": b"--- a\n" * 20_000,
        "many keys": b"".join(b"k%d: v\n" % n for n in range(100_000)),
        "a long text": b"exp_name: " + b"x" * 2_500_000,
        "a long line of brackets": b"]" * 100_000,
        "tags of the reader": b"%TAG ! tag:yaml.org,2002:python/\n---\n!object/apply:os.system [id]",
        "nothing": b"",
        "only a comment": b"# nothing",
    }


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
        "memo_bomb": b"\x80\x04Nr" + struct.pack("<I", 200_000_000) + b".",
        "doubling_frozenset": b"\x80\x04(K\x01\x85" + b"2\x86" * 60 + b"\x91.",
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
        "doubling_dicts_of_tensors": _HEAD
        + b"}X\x01\x00\x00\x00w"
        + tensor_opcodes()
        + b"s"
        + b"".join(b"\x94}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cu" % (i, i) for i in range(40))
        + b".",
        "call_flood": _HEAD + name_opcode("a", "b") + b"\x94" + b"h\x00)R0" * 400_000 + b"N.",
        "getattr_flood": _HEAD
        + name_opcode("builtins", "getattr")
        + b"\x94"
        + name_opcode("a", "B")
        + b"\x94"
        + b"".join(b"h\x00h\x01X\x05\x00\x00\x00%05d\x86R0" % i for i in range(50_000))
        + b"N.",
        "getattr_chain_flood": _HEAD
        + name_opcode("builtins", "getattr")
        + b"\x94"
        + name_opcode("a", "B")
        + b"\x94"
        + b"".join(b"0h\x00h\x01X\x01\x00\x00\x00x\x86R\x940h%c" % min(255, 2 + i) for i in range(200))
        + b".",
        "mark_flood": _HEAD + b"(" * 2_000_000 + b"t" * 2_000_000 + b".",
        "memo_flood": _HEAD + b"N" + b"\x94" * 3_000_000 + b".",
        "long_global": _HEAD + name_opcode("m" * 1_000_000, "n" * 1_000_000) + b".",
        "many_callbacks": _HEAD
        + b"}X\x09\x00\x00\x00callbacks}("
        + b"".join(b"X\x06\x00\x00\x00%06d}" % i for i in range(100_000))
        + b"us.",
        "deep_callbacks": _HEAD
        + b"}X\x09\x00\x00\x00callbacks"
        + b"}X\x01\x00\x00\x00a" * 50_000
        + b"N"
        + b"s" * 50_001
        + b".",
        "deep_hyper_parameters": _HEAD
        + b"}X\x10\x00\x00\x00hyper_parameters"
        + b"}X\x01\x00\x00\x00a" * 50_000
        + b"N"
        + b"s" * 50_001
        + b".",
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


def _lengths() -> dict[str, bytes]:
    """Lengths, counts and places that are not true."""
    return {
        "frame_too_short": b"\x80\x04\x95" + struct.pack("<Q", 1) + b"}.",
        "frame_in_frame": b"\x80\x04\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 1) + b"N.",
        "many_frames": b"\x80\x04" + (b"\x95" + struct.pack("<Q", 2) + b"N0") * 10_000 + b"N.",
        "negative_binstring": b"\x80\x02T" + struct.pack("<i", -1) + b".",
        "binstring_beyond_end": b"\x80\x02T" + struct.pack("<i", 1000) + b"a.",
        "binunicode8_beyond_end": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
        "binunicode8_astronomic": b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"a.",
        "long1_beyond_end": b"\x80\x02\x8a\xff\x01.",
        "long4_beyond_end": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"\x01.",
        "digits_of_int": b"I" + b"9" * 100_000 + b"\n.",
        "digits_of_long": b"L" + b"9" * 100_000 + b"L\n.",
        "digits_of_float": b"F" + b"9" * 100_000 + b"e999999\n.",
        "not_a_number_of_int": b"Ifoo\n.",
        "line_without_end": b"cos",
        "protocol_switched": b"\x80\x04\x80\x02" + name_opcode("__builtin__", "eval") + b"0\x80\x05N.",
        "tuple_of_nothing": b"\x80\x02\x85.",
        "mark_without_end": b"\x80\x02(N.",
        "end_without_mark": b"\x80\x02t.",
        "odd_items": b"\x80\x02}(Nu.",
        "setitem_on_list": b"\x80\x02]NaK\x00K\x01s.",
        "append_to_dict": b"\x80\x02}Na.",
        "additems_to_list": b"\x80\x04](N\x90.",
        "newobj_of_text": b"\x80\x02X\x01\x00\x00\x00a)\x81.",
        "newobj_ex_of_odd_names": _HEAD + name_opcode("a", "B") + b")}K\x01K\x02s\x92.",
        "reduce_of_none": b"\x80\x02N)R.",
        "reduce_of_list": b"\x80\x02" + name_opcode("a", "B") + b"]R.",
        "build_on_none": b"\x80\x02N}b.",
        "build_on_text": b"\x80\x02X\x01\x00\x00\x00a}X\x01\x00\x00\x00bNsb.",
        "get_of_text": b"gfoo\n.",
        "put_of_text": b"Npfoo\n.",
        "put_of_negative": b"Np-1\n.",
    }


def _odd_names() -> dict[str, bytes]:
    """Names that are not what they look like. None of them may count as proved."""
    return {
        "newline_in_name": _HEAD + b"\x8c\x05torch\x8c\x07Size\nos\x93.",
        "nul_in_name": _HEAD + b"\x8c\x05torch\x8c\x05Size\x00\x93.",
        "nul_in_module": _HEAD + b"\x8c\x06torch\x00\x8c\x04Size\x93.",
        "cyrillic_letter": _HEAD + _stack_global("t\u043erch", "Size"),
        "full_width_letters": _HEAD + _stack_global("\uff54orch", "Size"),
        "zero_width_space": _HEAD + _stack_global("torch\u200b", "Size"),
        "right_to_left": _HEAD + _stack_global("\u202etorch", "Size"),
        "trailing_dot": _HEAD + _stack_global("torch.", "Size"),
        "empty_module": _HEAD + _stack_global("", "system"),
        "empty_name": _HEAD + _stack_global("os", ""),
        "only_dots": _HEAD + _stack_global("torch", "Size.__init__.__globals__"),
        "attribute_of_allowed": _HEAD + _stack_global("collections", "OrderedDict.__init_subclass__"),
        "class_of_allowed": _HEAD + _stack_global("collections", "OrderedDict.__class__"),
        "module_as_name": _HEAD + _stack_global("torch", "os.system"),
        "main": _HEAD + _stack_global("__main__", "Net"),
        "name_of_bytes": _HEAD + b"C\x02osC\x06system\x93.",
        "name_of_number": _HEAD + b"K\x01K\x02\x93.",
        "name_by_call": _HEAD + name_opcode("builtins", "str") + b"X\x02\x00\x00\x00os\x85R\x8c\x06system\x93.",
        "name_from_list": _HEAD + b"]\x94X\x02\x00\x00\x00osa0h\x00\x8c\x06system\x93.",
    }


def _stack_global(module: str, name: str) -> bytes:
    parts = [part.encode("utf-8", "surrogatepass") for part in (module, name)]
    return b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93."


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
