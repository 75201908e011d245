"""Attributes side by side: what is equal, what differs, what only some know; over real checkpoints."""

from pathlib import Path

import msgspec
import pytest
import torch

from ckptd.catalog.compare import MAX_ROWS, Agreement, Sameness, Side, compare, sameness
from ckptd.catalog.compare_metrics import Direction, best_of, direction_of
from ckptd.catalog.compare_values import flatten, values_equal
from tests.catalog.catalog_records import record_of
from tests.catalog.compared_files import compared, row, save, side, weights


def test_a_copy_is_the_same_and_differs_only_in_where_it_lies(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", weights(), epoch=3, hyper_parameters={"lr": 0.1})
    (tmp_path / "b.ckpt").write_bytes(first.read_bytes())
    comparison = compared(tmp_path, first, tmp_path / "b.ckpt")
    assert (comparison.verdict, comparison.weights) == (Sameness.SAME, (Sameness.SAME,))
    assert row(comparison.identity, "path").status is Agreement.DIFFERING
    assert row(comparison.identity, "content_id").status is Agreement.EQUAL


def test_settings_are_equal_differing_or_missing_by_dotted_name(tmp_path: Path) -> None:
    common = {"model": {"depth": 18, "layers": [1, 2]}, "optimizer": {"lr": 0.1}}
    first = save(tmp_path / "a.ckpt", weights(), hyper_parameters=common)
    second = save(
        tmp_path / "b.ckpt", weights(), hyper_parameters=common | {"optimizer": {"lr": 0.01, "beta": None}, "seed": 1}
    )
    section = compared(tmp_path, first, second).hyper_parameters
    assert (section.equal, section.differing, section.missing) == (2, 1, 2)
    assert row(section, "model.layers").values == ([1, 2], [1, 2])
    assert row(section, "optimizer.lr").values == (0.1, 0.01)
    assert (row(section, "seed").status, row(section, "seed").missing) == (Agreement.MISSING, (0,))
    assert row(section, "optimizer.beta").missing == (0,), "a null that was set is not a missing value"


def test_configs_beside_the_checkpoints_are_compared(tmp_path: Path) -> None:
    paths = [save(tmp_path / name / "a.ckpt", weights()) for name in ("one", "two")]
    for path, decay in zip(paths, (0, 0.5), strict=True):
        path.with_name("config.yaml").write_text(f"trainer:\n  decay: {decay}\n  steps: 10\n")
    comparison = compared(tmp_path, *paths)
    assert row(comparison.config, "trainer.decay").values == (0, 0.5)
    assert row(comparison.config, "trainer.steps").status is Agreement.EQUAL
    assert comparison.verdict is Sameness.DIFFERENT
    assert sameness(comparison, ("tensors", "hyper_parameters")) is Sameness.SAME


def test_training_and_model_are_compared(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", weights(), epoch=3, global_step=30)
    second = save(tmp_path / "b.ckpt", weights(head__weight=torch.ones(2, 4).half()), epoch=4, global_step=30)
    comparison = compared(tmp_path, first, second)
    assert row(comparison.training, "epoch").values == (3, 4)
    assert row(comparison.training, "global_step").status is Agreement.EQUAL
    assert row(comparison.model, "dtypes").values == (["float32"], ["float32", "float16"])
    assert row(comparison.model, "parameters.head").status is Agreement.EQUAL
    assert row(comparison.model, "weights_bytes").status is Agreement.DIFFERING


def test_the_best_metric_is_marked_by_the_declared_mode_else_by_its_name() -> None:
    sides = [
        Side(record_of(f"{n}.ckpt", metrics=metrics, monitor="odd", monitor_mode="min").entry, None)
        for n, metrics in enumerate(
            (
                {"hmean": 0.8, "val/loss": 0.3, "odd": 2.0, "size": 5.0},
                {"hmean": 0.9, "val/loss": 0.2, "odd": 1.0, "size": 6.0},
                {"hmean": 0.9, "odd": 3.0},
            )
        )
    ]
    metrics = compare(sides).metrics
    assert (row(metrics, "hmean").direction, row(metrics, "hmean").best) == (Direction.MAX, (1, 2))
    assert (row(metrics, "val/loss").direction, row(metrics, "val/loss").best) == (Direction.MIN, (1,))
    assert row(metrics, "val/loss").missing == (2,)
    assert (row(metrics, "odd").direction, row(metrics, "odd").best) == (Direction.MIN, (1,))
    assert (row(metrics, "size").direction, row(metrics, "size").best) == (None, ())


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("train_loss", "min"),
        ("focalloss", "min"),
        ("val/accuracy", "max"),
        ("accuracy_loss", "min"),
        ("mAP50", "max"),
        ("WER", "min"),
        ("lr", None),
        ("glossary", None),
    ],
)
def test_a_names_last_telling_word_says_which_way_a_metric_improves(name: str, direction: str | None) -> None:
    assert direction_of(name, ()) == direction


def test_a_declared_mode_beats_the_name_and_contradicting_modes_leave_it_open() -> None:
    declared = [record_of("a", monitor="val/loss", monitor_mode="max").entry]
    assert direction_of("validation_loss", declared) is Direction.MAX
    contradicting = [*declared, record_of("b", monitor="val_loss", monitor_mode="min").entry]
    assert direction_of("validation_loss", contradicting) is None


def test_there_is_no_best_where_there_is_no_choice() -> None:
    assert best_of((0.5, None), Direction.MAX) == ()
    assert best_of((0.5, 0.5), Direction.MAX) == ()
    assert best_of((0.5, float("nan"), 0.7), Direction.MIN) == (0,)


def test_what_is_not_known_of_one_is_missing_and_makes_a_difference(tmp_path: Path) -> None:
    known = side(save(tmp_path / "a.ckpt", weights(), epoch=1), tmp_path)
    comparison = compare([known, Side(record_of("b.ckpt").entry, None)])
    assert row(comparison.training, "epoch").status is Agreement.MISSING
    assert comparison.tensors.known == (True, False)
    assert comparison.weights == (Sameness.UNKNOWN,)
    assert {row.changes[0] for row in comparison.tensors.rows} == {"unknown"}
    assert comparison.verdict is Sameness.DIFFERENT


def test_a_link_is_the_same_as_its_target_whatever_checksums_say(tmp_path: Path) -> None:
    torch.save({"state_dict": weights()}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    target = side(tmp_path / "a.ckpt", tmp_path)
    link = Side(msgspec.structs.replace(target.entry, id="link", alias_of=target.entry.id), target.description)
    assert compare([target, link]).weights == compare([link, target]).weights == (Sameness.SAME,)
    assert compare([target, link]).verdict is Sameness.SAME


def test_of_very_many_settings_those_that_differ_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    many = {f"key{n:05d}": n for n in range(MAX_ROWS + 500)}
    first = save(tmp_path / "a.ckpt", weights(), hyper_parameters=many)
    second = save(tmp_path / "b.ckpt", weights(), hyper_parameters=many | {"key02400": -1})
    section = compared(tmp_path, first, second).hyper_parameters
    assert (section.equal, section.differing, section.omitted) == (MAX_ROWS + 499, 1, 500)
    assert (len(section.rows), section.rows[0].name) == (MAX_ROWS, "key02400")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_two_to_four_can_be_compared(count: int) -> None:
    with pytest.raises(ValueError, match="2 to 4"):
        compare([Side(record_of(f"{n}.ckpt").entry, None) for n in range(count)])


def test_two_settings_never_share_a_name() -> None:
    assert flatten({"a.b": 1, "a": {"b": 2}, "": 3}) == {'"a.b"': 1, "a.b": 2, '""': 3}


def test_lists_of_mappings_are_taken_apart_and_empty_ones_are_values() -> None:
    value = {"layers": [{"n": 1}, 5], "sizes": [1, 2], "none": {}, "empty": []}
    assert flatten(value) == {"layers.0.n": 1, "layers.1": 5, "sizes": [1, 2], "none": {}, "empty": []}
    assert flatten(None) == flatten({}) == {}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (False, False, True),
        ([1, True], [1.0, True], True),
        ([1, True], [1.0, 1], False),
        ({"a": [1]}, {"a": [1.0]}, True),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        (float("nan"), float("nan"), True),
        (None, 0, False),
        ("1", 1, False),
    ],
)
def test_equality_is_that_of_what_was_meant(one: object, other: object, equal: bool) -> None:
    assert values_equal(one, other) is equal
