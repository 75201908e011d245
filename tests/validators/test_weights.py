"""Level `weights`: every floating value is looked at, what is no number is named, and nothing else is blamed."""

import io
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.validators import Finding, Inspection, Level, Severity, inspect_checkpoint
from ckptd.validators.floats import KINDS
from ckptd.validators.reader import PIECE_BYTES
from tests.validators.checkpoint_files import codes

NAN, INF = math.nan, math.inf
FLOATING = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)


def _inspected(directory: Path, contents: object, **options: Any) -> Inspection:
    path = directory / "values.ckpt"
    torch.save(contents, path, **options)
    return inspect_checkpoint(path, Level.WEIGHTS)


def _non_finite(inspection: Inspection) -> list[Finding]:
    return [found for found in inspection.findings if found.code == "weights.non_finite"]


def _all_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern of a type of one or two bytes; of wider ones, every pattern of their highest two bytes."""
    patterns = torch.arange(256 if dtype.itemsize == 1 else 65536, dtype=torch.int32)
    if dtype.itemsize == 1:
        return patterns.to(torch.uint8).view(dtype)
    high = patterns.to(torch.uint16).view(torch.int16)
    width = dtype.itemsize // (2 if dtype.is_complex else 1) // 2
    wide = torch.zeros(len(high), width, dtype=torch.int16)
    wide[:, -1] = high
    return wide.flatten().view(dtype)


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Of each number, as torch sees it."""
    numbers = torch.view_as_real(tensor).flatten() if tensor.is_complex() else tensor
    return torch.isfinite(numbers.to(torch.float64))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_each_bit_pattern_is_judged_as_torch_judges_it(dtype: torch.dtype, tmp_path: Path) -> None:
    patterns = _all_patterns(dtype)
    finite = _is_finite(patterns)
    (found,) = _non_finite(_inspected(tmp_path, {"state_dict": {"w": patterns}}))
    count = int((~finite).sum())
    first = int((~finite).nonzero()[0]) // (2 if dtype.is_complex else 1)
    numbers = f"{count:,} values of tensor state_dict.w are" if count > 1 else "1 value of tensor state_dict.w is"
    assert found.message.startswith(f"{numbers} not finite (")
    assert found.message.endswith(f"the first at index [{first}]")
    if not dtype.is_complex:
        kept = patterns.view(torch.uint8).view(-1, dtype.itemsize)[finite].flatten().view(dtype)
        assert _inspected(tmp_path, {"state_dict": {"w": kept}}).findings == ()


def _save_safetensors(contents: dict[str, dict[str, torch.Tensor]], path: Path) -> None:
    safetensors.torch.save_file({name: t.contiguous() for name, t in contents["state_dict"].items()}, path)


WRITERS = {
    "zip": torch.save,
    "legacy": lambda contents, path: torch.save(contents, path, _use_new_zipfile_serialization=False),
    "safetensors": _save_safetensors,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_first_bad_tensor_is_named_with_count_and_index_in_every_format(writer: str, tmp_path: Path) -> None:
    state = {"a": torch.randn(4, 5), "b": torch.randn(3, 4, 5), "c": torch.randn(2)}
    state["b"][1, 2, 3] = NAN
    state["b"][2, 0, 0] = -INF
    state["c"][1] = INF
    path = tmp_path / "values.ckpt"
    WRITERS[writer]({"state_dict": state}, path)
    inspection = inspect_checkpoint(path, Level.WEIGHTS)
    prefix = "" if writer == "safetensors" else "state_dict."
    assert [found.message for found in _non_finite(inspection)] == [
        f"2 values of tensor {prefix}b are not finite (1 NaN and 1 infinite), the first at index [1, 2, 3]",
        f"1 value of tensor {prefix}c is not finite (1 infinite), the first at index [1]",
    ]
    assert not inspection.is_valid
    assert inspection.level is Level.WEIGHTS
    assert inspect_checkpoint(path).is_valid


def test_a_scripted_program_is_looked_at(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 3)
    with torch.no_grad():
        module.weight[2, 1] = NAN
    torch.jit.save(torch.jit.trace(module, torch.randn(1, 3)), tmp_path / "program.ckpt")
    (found,) = _non_finite(inspect_checkpoint(tmp_path / "program.ckpt", Level.WEIGHTS))
    assert "weight" in found.message
    assert found.message.endswith("[2, 1]")


def test_level_weights_includes_the_checksums_and_the_digest(tmp_path: Path) -> None:
    tensor = torch.randn(300)
    inspection = _inspected(tmp_path, {"state_dict": {"w": tensor}})
    path = tmp_path / "values.ckpt"
    checked = inspect_checkpoint(path, Level.CHECKSUM)
    assert inspection.level is Level.WEIGHTS
    assert inspection.digest == checked.digest is not None
    data = bytearray(path.read_bytes())
    data[data.index(tensor.numpy().tobytes())] ^= 1  # still a number, only another one
    path.write_bytes(data)
    assert codes(inspect_checkpoint(path, Level.WEIGHTS)) == {"archive.checksum_mismatch"}


def test_an_archive_without_checksums_still_has_its_values_looked_at(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        inspection = _inspected(tmp_path, {"state_dict": {"w": torch.tensor([1.0, NAN])}})
    finally:
        torch.serialization.set_crc32_options(True)
    assert inspection.level is Level.WEIGHTS
    assert codes(inspection) == {"archive.unverifiable", "weights.non_finite"}


def test_a_bad_value_at_each_border_of_the_pieces_is_found(tmp_path: Path) -> None:
    """Tensors are longer than what is read at once; legacy files hold them at odd places, so numbers are cut apart."""
    count = 2 * PIECE_BYTES // 8 + 1000
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        tensor = torch.ones(count, dtype=torch.float64)
        contents = {"state_dict": {"odd": torch.ones(3, dtype=torch.int8), "w": tensor}}
        path = tmp_path / "values.ckpt"
        torch.save(contents, path, **options)
        begin = path.read_bytes().index(tensor[:100].numpy().tobytes())
        for border in (PIECE_BYTES, 2 * PIECE_BYTES):
            for index in {(border - begin) // 8, (border - begin) // 8 - 1, -(-(border - begin) // 8)}:
                tensor[index] = NAN
                (found,) = _non_finite(_inspected(tmp_path, contents, **options))
                assert found.message.endswith(f"(1 NaN), the first at index [{index}]")
                tensor[index] = 1


def test_what_lies_between_the_elements_of_a_view_is_nobodys(tmp_path: Path) -> None:
    base = torch.randn(50, 40)
    base[7, 9] = NAN
    state = {"even": base[:, ::2], "odd": base[:, 1::2], "rows": base[:7]}
    (found,) = _non_finite(_inspected(tmp_path, {"state_dict": state}))
    assert "state_dict.odd" in found.message
    assert found.message.endswith("index [7, 4]")


def test_bytes_that_no_tensor_covers_are_not_judged(tmp_path: Path) -> None:
    base = torch.full((100,), NAN)
    base[40:50] = 1
    inspection = _inspected(tmp_path, {"state_dict": {"w": base[40:50]}})
    assert inspection.findings == ()
    assert inspection.level is Level.WEIGHTS


def test_transposed_and_shared_tensors_have_their_own_index(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    base[5, 1] = NAN
    state = {"w": base, "tied": base, "t": base.t(), "wide": base[None].expand(3, 6, 4)}
    messages = [found.message for found in _non_finite(_inspected(tmp_path, {"state_dict": state}))]
    assert [message.rpartition("index ")[2] for message in messages] == ["[5, 1]", "[1, 5]", "[0, 5, 1]"]
    assert "state_dict.w (and 1 more that share its memory)" in messages[0]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_view_of_a_storage_is_blamed_for_its_own_elements_only(data: st.DataObject) -> None:
    sides = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    base = torch.ones(*(side + 2 for side in sides))
    bad = data.draw(st.lists(st.integers(0, base.numel() - 1), min_size=1, max_size=4, unique=True))
    base.view(-1)[bad] = NAN
    view = base
    for axis in range(len(sides)):
        start = data.draw(st.integers(0, 2))
        view = view.narrow(axis, start, sides[axis])
        view = view[tuple([slice(None)] * axis + [slice(None, None, data.draw(st.integers(1, 2)))])]
    view = view.permute(*data.draw(st.permutations(range(view.dim()))))
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": view}}, buffer)
    found = _non_finite(_of_bytes(buffer.getvalue()))
    expected = view.isnan().nonzero().tolist()
    assert len(found) == bool(expected)
    if expected:
        assert f"({len(expected):,} NaN)" in found[0].message
        assert any(found[0].message.endswith(f"index {index}") for index in expected)


def _of_bytes(data: bytes) -> Inspection:
    import os
    import tempfile

    from ckptd.validators import inspect_opened

    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return inspect_opened(file.fileno(), os.fspath("bytes.ckpt"), Level.WEIGHTS)


def _big_endian(data: bytes, tensor: torch.Tensor) -> bytes:
    """The archive as a big-endian machine writes it: the tensor's bytes swapped, and the record that says so."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            record = old.read(name)
            if name.endswith("byteorder"):
                record = b"big"
            elif name.endswith("/data/0"):
                width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
                record = (
                    torch.frombuffer(bytearray(record), dtype=torch.uint8).view(-1, width).flip(1).numpy().tobytes()
                )
            new.writestr(name, record)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_big_endian_archives_are_read_in_their_own_order(dtype: torch.dtype, tmp_path: Path) -> None:
    if dtype is torch.bfloat16:
        tensor = torch.tensor([0x3F80, 0xBF7F, 0x4040], dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        tensor = torch.tensor([0x3F800000, 0x3F80C07F, 0x40400000, 0], dtype=torch.int32).view(dtype)
    swapped = tensor.view(torch.uint8).view(-1, 2 if dtype is torch.bfloat16 else 4).flip(1).flatten().view(dtype)
    assert not _is_finite(swapped).all(), "read in the other order, one of these numbers is none"
    bad = tensor.clone()
    bad[1] = NAN
    for each, expected in ((tensor, 0), (bad, 1)):
        buffer = io.BytesIO()
        torch.save({"state_dict": {"w": each}}, buffer)
        (tmp_path / "big.ckpt").write_bytes(_big_endian(buffer.getvalue(), each))
        inspection = inspect_checkpoint(tmp_path / "big.ckpt", Level.WEIGHTS)
        assert len(_non_finite(inspection)) == expected


def test_compressed_records_are_looked_at_as_they_expand(tmp_path: Path) -> None:
    tensor = torch.zeros(1_000_000)
    tensor[999_999] = NAN
    buffer = io.BytesIO()
    torch.save({"state_dict": {"zero": torch.zeros(700, 700), "w": tensor}}, buffer)
    path = tmp_path / "deflated.ckpt"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    inspection = inspect_checkpoint(path, Level.WEIGHTS)
    assert inspection.level is Level.WEIGHTS
    assert [found.message for found in inspection.findings] == [
        "1 value of tensor state_dict.w is not finite (1 NaN), the first at index [999999]",
        "every value is zero in tensor state_dict.zero",
    ]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_sparse_values_are_looked_at_and_integers_and_quantized_ones_are_not(tmp_path: Path) -> None:
    sparse = torch.tensor([[0.0, NAN], [1.0, 0.0]]).to_sparse()
    quantized = torch.quantize_per_tensor(torch.randn(5, 5), 0.1, 0, torch.qint8)
    state = {"s": sparse, "q": quantized, "i": torch.full((4, 4), 2**62), "b": torch.ones(3, dtype=torch.bool)}
    (found,) = _inspected(tmp_path, {"state_dict": state}).findings
    assert found.message.startswith("1 value of the values of sparse tensor state_dict.s is not finite")


def test_a_diverged_optimizer_is_a_warning_and_a_score_before_the_first_epoch_is_nothing(tmp_path: Path) -> None:
    inspection = _inspected(
        tmp_path,
        {
            "state_dict": {"w": torch.randn(3)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.full((3,), NAN)}}, "param_groups": []}],
            "callbacks": {"EarlyStopping": {"best_score": torch.tensor(INF)}},
        },
    )
    (found,) = inspection.findings
    assert (found.code, found.severity) == ("weights.non_finite", Severity.WARNING)
    assert "exp_avg" in found.message
    assert inspection.is_valid


def test_infinities_that_are_meant_do_not_make_a_checkpoint_invalid(tmp_path: Path) -> None:
    """Attention masks, and observers that have observed nothing. A diverged matrix of that shape is another matter."""
    observer = torch.ao.quantization.MinMaxObserver().state_dict()
    state = {"attention.mask": torch.full((8, 8), -INF).triu(1), **{f"o.{name}": t for name, t in observer.items()}}
    inspection = _inspected(tmp_path, {"state_dict": state})
    assert {found.severity for found in _non_finite(inspection)} == {Severity.INFO}
    assert len(_non_finite(inspection)) == 3
    for value, other in ((-INF, 0.5), (INF, 0.0), (NAN, 0.0)):
        diverged = torch.zeros(8, 8)
        diverged[3:, 3] = value
        diverged[0, 0] = other
        assert not _inspected(tmp_path, {"state_dict": {"attention.mask": diverged}}).is_valid
    assert not _inspected(tmp_path, {"state_dict": {"logit_scale": torch.tensor(INF)}}).is_valid


def test_weights_that_are_all_zero_are_a_hint_and_biases_are_not(tmp_path: Path) -> None:
    zeros = {f"layer{n}.weight": torch.zeros(3, 3) for n in range(7)}
    others = {"bias": torch.zeros(9), "n": torch.tensor(0.0), "row": torch.zeros(1, 9), "w": torch.eye(3)}
    inspection = _inspected(tmp_path, {"state_dict": others | zeros, "optimizer": {"state": {0: torch.zeros(3, 3)}}})
    (found,) = inspection.findings
    assert (found.code, found.severity) == ("weights.all_zero", Severity.INFO)
    named = ", ".join(f"state_dict.layer{n}.weight" for n in range(5))
    assert found.message == f"every value is zero in tensor {named} and 2 more"
    negative = _inspected(tmp_path, {"state_dict": {"w": torch.full((3, 3), -0.0)}})
    assert codes(negative) == {"weights.all_zero"}


def test_many_bad_tensors_are_counted_not_listed(tmp_path: Path) -> None:
    inspection = _inspected(tmp_path, {"state_dict": {f"w{n}": torch.full((2,), NAN) for n in range(50)}})
    messages = [found.message for found in _non_finite(inspection)]
    assert len(messages) == 10
    assert messages[0].startswith("2 values of tensor state_dict.w0 ")
    assert messages[-1] == "and 41 more like these"


def test_torch_is_asked_for_by_name_where_it_is_missing(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "a.ckpt")
    code = """
import sys
sys.modules["torch"] = None
from ckptd.validators import Level, inspect_checkpoint
assert inspect_checkpoint(sys.argv[1], Level.CHECKSUM).is_valid
try:
    inspect_checkpoint(sys.argv[1], Level.WEIGHTS)
except ValueError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.ckpt")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("TorchMissing ")
    assert "pip install 'ckptd[torch]'" in done.stdout


def test_memory_that_ends_in_torch_is_memory_that_ends(tmp_path: Path) -> None:
    """The worker tells a limit of memory from a fault of the parser by the exception."""
    torch.save(
        {"state_dict": {"w": torch.full((4 << 20,), 0xFF, dtype=torch.uint8).view(torch.float8_e8m0fnu)}},
        tmp_path / "a.ckpt",
    )
    code = """
import resource, sys
from ckptd.validators import Level, inspect_checkpoint
from ckptd.validators.checks import weights
weights.warm_up()
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (12 << 20),) * 2)
try:
    inspect_checkpoint(sys.argv[1], Level.WEIGHTS)
except MemoryError as error:
    print("memory ended in", type(error.__cause__).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "a.ckpt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "memory ended in RuntimeError\n", done.stderr[-500:]


def test_other_levels_do_not_import_torch(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "a.ckpt")
    code = (
        "import sys; from ckptd.validators import Level, inspect_checkpoint; "
        "inspect_checkpoint(sys.argv[1], Level.CHECKSUM); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.ckpt")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"


def test_the_kinds_are_those_of_all_floating_types_of_torch() -> None:
    """A type that torch gains one day must not pass unseen."""
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    floating = {str(d).removeprefix("torch.") for d in dtypes if d.is_floating_point or d.is_complex}
    assert set(KINDS) == floating
