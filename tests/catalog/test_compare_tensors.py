"""Tensors side by side: "same" and "changed" only where checksums prove it, and names aligned across wrappers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.compare import Sameness
from ckptd.catalog.compare_tensors import ChecksumEvidence, TensorChange, TensorSelection, align, compare_tensors
from ckptd.catalog.description import CheckpointMetadata, Description
from ckptd.catalog.entry import Health, Identities, MetadataSource, make_record
from ckptd.catalog.roots import Root
from ckptd.validators.inspection import FileIdentity, Inspection, Level, TensorInfo
from tests.catalog.compared_files import changes, compared, save, weights
from tests.validators.directory_files import save_dcp


def test_each_kind_of_change_is_told(tmp_path: Path) -> None:
    state = weights(same=torch.ones(3), typed=torch.ones(3), gone=torch.ones(1))
    other = {name: tensor for name, tensor in state.items() if name != "gone"}
    other |= {
        "encoder.weight": torch.zeros(4, 3),
        "encoder.bias": torch.zeros(5),
        "typed": torch.ones(3).double(),
        "new": torch.ones(2),
    }
    comparison = compared(tmp_path, save(tmp_path / "a.ckpt", state), save(tmp_path / "b.ckpt", other))
    assert changes(comparison) == {
        "new": "added",
        "gone": "removed",
        "encoder.bias": "reshaped",
        "typed": "dtype_changed",
        "encoder.weight": "changed",
        "head.weight": "same",
        "same": "same",
    }, "those that differ come first"
    counts = comparison.tensors.counts[0]
    assert (counts.added, counts.removed, counts.reshaped, counts.dtype_changed) == (1, 1, 1, 1)
    assert (counts.changed, counts.unknown, counts.same, counts.n_different) == (1, 0, 2, 5)
    assert (comparison.weights, comparison.verdict) == ((Sameness.DIFFERENT,), Sameness.DIFFERENT)


def test_a_part_of_a_storage_that_differs_elsewhere_is_unknown_and_of_an_equal_one_the_same(tmp_path: Path) -> None:
    def views(seed: int) -> dict[str, torch.Tensor]:
        both = torch.cat([torch.zeros(4), torch.full((4,), float(seed))])
        return {"head": both[:4], "tail": both[4:]}

    first, other = save(tmp_path / "a.ckpt", views(1)), save(tmp_path / "b.ckpt", views(2))
    comparison = compared(tmp_path, first, other)
    assert changes(comparison) == {"head": "unknown", "tail": "unknown"}
    assert (comparison.weights, comparison.verdict) == ((Sameness.UNKNOWN,), Sameness.UNKNOWN)
    again = save(tmp_path / "c.ckpt", views(1))
    assert changes(compared(tmp_path, first, again)) == {"head": "same", "tail": "same"}


def test_other_strides_over_the_same_values_prove_nothing(tmp_path: Path) -> None:
    matrix = torch.randn(3, 4)
    first = save(tmp_path / "a.ckpt", {"w": matrix, "t": matrix.T.contiguous().T})
    other = save(tmp_path / "b.ckpt", {"w": matrix.T.contiguous().T, "t": matrix.T.contiguous().T})
    assert changes(compared(tmp_path, first, other)) == {"w": "unknown", "t": "same"}


def test_a_dense_tensor_of_any_order_fills_its_storage_and_an_expanded_one_does_not(tmp_path: Path) -> None:
    def state(value: float) -> dict[str, torch.Tensor]:
        image = torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last)
        return {
            "image": image,
            "expanded": torch.full((1,), value).expand(1, 1)[:, :1],
            "row": torch.full((2, 2), value)[:1],
        }

    comparison = compared(tmp_path, save(tmp_path / "a.ckpt", state(1)), save(tmp_path / "b.ckpt", state(2)))
    assert changes(comparison) == {"image": "changed", "expanded": "changed", "row": "unknown"}


@pytest.mark.parametrize("damaged", ["a.ckpt", "b.ckpt"])
def test_checksums_that_do_not_hold_prove_nothing(tmp_path: Path, damaged: str) -> None:
    paths = [save(tmp_path / name, {"w": torch.ones(1000)}) for name in ("a.ckpt", "b.ckpt")]
    data = bytearray((tmp_path / damaged).read_bytes())
    data[data.index(torch.ones(4).numpy().tobytes()) + 100] ^= 1
    (tmp_path / damaged).write_bytes(data)
    assert changes(compared(tmp_path, *paths)) == {"w": "same"}, "nobody has read the bytes so far"
    comparison = compared(tmp_path, *paths, level=Level.CHECKSUM)
    assert changes(comparison) == {"w": "unknown"}
    assert set(comparison.tensors.checksums) == {ChecksumEvidence.VERIFIED, ChecksumEvidence.FAILED}


def test_formats_without_checksums_are_the_same_only_if_digests_of_the_files_are(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.ckpt", "b.ckpt", "c.ckpt")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        safetensors.torch.save_file(weights(seed), path)
    comparison = compared(tmp_path, *paths)
    assert set(changes(comparison).values()) == {"unknown/unknown"}
    assert comparison.tensors.checksums == (ChecksumEvidence.NONE,) * 3
    read = compared(tmp_path, *paths, level=Level.CHECKSUM)
    assert set(changes(read).values()) == {"same/unknown"}
    assert read.weights == (Sameness.SAME, Sameness.UNKNOWN)


def test_an_empty_tensor_is_the_same_as_another_one(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.ckpt", "b.ckpt")]
    for path in paths:
        safetensors.torch.save_file({"empty": torch.zeros(0, 3)}, path)
    assert changes(compared(tmp_path, *paths)) == {"empty": "same"}


def test_a_sharded_checkpoint_is_compared_with_a_file(tmp_path: Path) -> None:
    state = weights()
    save_dcp(str(tmp_path / "step-1"), {"model": state})
    path = save(tmp_path / "a.ckpt", state | {"encoder.bias": torch.zeros(4)})
    comparison = compared(tmp_path, path, tmp_path / "step-1")
    assert comparison.tensors.prefixes == ("state_dict.", "model.")
    assert changes(comparison) == {"encoder.bias": "changed", "encoder.weight": "same", "head.weight": "same"}


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("state_dict", "model."), ("model_state_dict", ""), ("state_dict", "module._orig_mod."), ("", "")],
)
def test_wrappers_and_containers_do_not_hide_that_the_weights_are_the_same(
    tmp_path: Path, key: str, prefix: str
) -> None:
    first = save(tmp_path / "a.ckpt", weights())
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in weights().items()}
    torch.save({key: state} if key else state, tmp_path / "b.ckpt")
    comparison = compared(tmp_path, first, tmp_path / "b.ckpt")
    assert comparison.weights == (Sameness.SAME,)
    assert set(changes(comparison).values()) == {"same"}


def test_a_torch_module_under_lightning_and_data_parallel_aligns(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[1].bias += 1
    first = save(tmp_path / "a.ckpt", {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    second = save(tmp_path / "b.ckpt", torch.nn.DataParallel(changed).state_dict())
    comparison = compared(tmp_path, first, second)
    assert comparison.tensors.prefixes == ("state_dict.model.", "state_dict.module.")
    assert changes(comparison) == {"1.bias": "changed", "0.weight": "same", "0.bias": "same", "1.weight": "same"}


def test_optimizer_state_is_compared_and_does_not_count_as_weights(tmp_path: Path) -> None:
    optimizers = [{"optimizer_states": [{"state": {0: {"exp_avg": torch.full((2,), x)}}}]} for x in (1.0, 2.0)]
    paths = [save(tmp_path / f"{n}.ckpt", weights(), **more) for n, more in enumerate(optimizers)]
    comparison = compared(tmp_path, *paths)
    assert (comparison.weights, comparison.verdict) == ((Sameness.SAME,), Sameness.DIFFERENT)
    assert comparison.tensors.rows[0].role == "optimizer"
    assert comparison.tensors.rows[0].changes == (TensorChange.CHANGED,)


def test_four_are_each_compared_with_the_first(tmp_path: Path) -> None:
    states = (weights(), weights(), weights(head__weight=torch.zeros(2, 4)), weights(extra=torch.ones(1)))
    paths = [save(tmp_path / f"{n}.ckpt", state) for n, state in enumerate(states)]
    comparison = compared(tmp_path, *paths)
    assert changes(comparison)["extra"] == "absent/absent/added"
    assert changes(comparison)["head.weight"] == "same/changed/same"
    assert comparison.weights == (Sameness.SAME, Sameness.DIFFERENT, Sameness.DIFFERENT)
    assert comparison.tensors.totals == (3, 3, 3, 4)


def test_rows_are_paged_and_chosen_by_change_and_totals_stay(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", {f"w{n:02d}": torch.full((2,), float(n)) for n in range(30)})
    second = save(tmp_path / "b.ckpt", {f"w{n:02d}": torch.full((2,), float(n % 29)) for n in range(30)})
    page = compared(tmp_path, first, second, limit=10, offset=25).tensors
    assert (page.total, len(page.rows), page.counts[0].same) == (30, 5, 29)
    changed = compared(tmp_path, first, second, changes=frozenset({TensorChange.CHANGED})).tensors
    assert [row.name for row in changed.rows] == ["state_dict.w29"]
    assert (changed.total, changed.counts[0].same) == (1, 29)
    assert TensorSelection().limit == 1000


def test_names_that_collide_when_they_are_joined_are_kept_apart(tmp_path: Path) -> None:
    state = {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1), "c": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    torch.save({"state_dict": state}, tmp_path / "b.ckpt")
    assert compared(tmp_path, tmp_path / "a.ckpt", tmp_path / "b.ckpt").tensors.counts[0].same == 3


@pytest.mark.parametrize(
    ("sides", "prefixes"),
    [
        ((["a.x", "a.y"], ["a.x", "a.y"]), ["", ""]),
        ((["s.x", "s.y"], ["x", "y"]), ["s.", ""]),
        ((["s.m.x", "s.m.y"], ["t.x", "t.y"]), ["s.m.", "t."]),
        # All of the first side lies in one part of the second: nothing is to be taken off.
        ((["s.encoder.x", "s.encoder.y"], ["s.encoder.x", "s.encoder.y", "s.head.x"]), ["", ""]),
        ((["x"], ["x.x"]), ["", "x."]),
        (([], ["s.x"]), ["", ""]),
        ((["s.x", "s.y"], ["x", "y"], ["m.s.x", "m.s.y"]), ["", "", ""]),
    ],
)
def test_prefixes_are_taken_off_where_that_finds_more_names(sides: tuple[list[str], ...], prefixes: list[str]) -> None:
    if len(sides) == 3:
        prefixes = ["s.", "", "m.s."]
    assert align(sides) == prefixes


_PARTS = st.sampled_from(["a", "b", "model"])
_NAMES = st.lists(st.lists(_PARTS, min_size=1, max_size=4).map(".".join), max_size=6, unique=True)


@given(st.lists(_NAMES, min_size=2, max_size=4))
def test_alignment_never_loses_a_match_nor_a_whole_name(sides: list[list[str]]) -> None:
    prefixes = align(sides)
    stripped = [{name.removeprefix(prefix) for name in names} for names, prefix in zip(sides, prefixes, strict=True)]
    for names, prefix, short in zip(sides, prefixes, stripped, strict=True):
        assert all(name.startswith(prefix) and len(name) > len(prefix) for name in names)
        assert len(short) == len(set(names))
    found = sum(len(stripped[0] & other) for other in stripped[1:])
    assert found >= sum(len(set(sides[0]) & set(other)) for other in sides[1:])


@given(st.lists(st.lists(_PARTS, min_size=1, max_size=3).map(".".join), min_size=2, max_size=6, unique=True), _PARTS)
def test_a_wrapper_around_all_names_is_always_seen_through(names: list[str], wrapper: str) -> None:
    wrapped = [f"{wrapper}.{name}" for name in names]
    first, other = align([names, wrapped])
    assert {n.removeprefix(first) for n in names} == {n.removeprefix(other) for n in wrapped}


def test_a_file_all_of_whose_tensors_have_one_name_costs_no_more_than_any_other() -> None:
    """Sections of a pickle can spell one dotted name in thousands of ways; that took the square of how many."""
    tensor = TensorInfo("state_dict.a", "float32", (1,), (1,), "0", 0, 4, "weights")
    inspection = Inspection(checkpoint_path="/a.ckpt", identity=FileIdentity(1, 2, 3, 4), tensors=(tensor,) * 100_000)
    description = Description(inspection=inspection, findings=(), metadata=CheckpointMetadata())
    record = make_record(
        Root(b"/"),
        b"a.ckpt",
        description,
        Health.VALID,
        identities=Identities(inspection.identity),
        metadata_source=MetadataSource.NONE,
    )
    section = compare_tensors([record.entry] * 2, [description] * 2, TensorSelection(changes=frozenset(TensorChange)))
    assert section.totals == (100_000, 100_000)
    assert section.total == 100_000
    assert [row.name for row in section.rows[:3]] == ["state_dict.a", "state_dict.a (2)", "state_dict.a (3)"]
