"""A comparison as CSV and Markdown: complete, and harmless whatever a checkpoint is called."""

import csv
import io
from pathlib import Path

import pytest
import torch

from ckptd.catalog.compare import compare
from ckptd.catalog.compare_text import MAX_CELL, to_csv, to_markdown
from tests.catalog.compared_files import compared, save, side, weights


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text), strict=True))


def test_csv_has_a_heading_and_a_line_for_each_attribute_and_tensor(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", weights(), epoch=1, hyper_parameters={"lr": -0.5, "names": ["x", "y"]})
    second = save(tmp_path / "b.ckpt", weights(head__weight=torch.zeros(2, 4)), epoch=2)
    comparison = compare(
        [side(first, tmp_path, metrics={"hmean": 0.5}), side(second, tmp_path, metrics={"hmean": 0.75})]
    )
    text = to_csv(comparison)
    assert text.endswith("\r\n")
    table = cells(text)
    assert table[0] == ["section", "name", "status", "best", "a.ckpt", "b.ckpt"]
    assert {len(line) for line in table} == {6}
    for expected in (
        ["training", "epoch", "differing", "", "1", "2"],
        ["metrics", "hmean", "differing", "2", "0.5", "0.75"],
        ["hyper_parameters", "lr", "missing", "", "-0.5", ""],
        ["hyper_parameters", "names", "missing", "", '["x", "y"]', ""],
        ["tensors", "(total)", "", "", "3", "3"],
        ["tensors", "(changed)", "", "", "", "1"],
        ["tensors", "state_dict.head.weight", "changed", "", "float32 [2, 4]", "float32 [2, 4]"],
    ):
        assert expected in table


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "  =1", "\uff1d1+1", "|x", "%0a=1", "=HYPERLINK(1)"],
)
def test_no_cell_is_a_formula(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / f"{text.replace('/', '_')}.ckpt", weights(), hyper_parameters={text: text, "x": text})
    other = save(tmp_path / "b.ckpt", {text: torch.ones(1)}, hyper_parameters={"x": 1})
    for line in cells(to_csv(compared(tmp_path, path, other))):
        for cell in line:
            assert not cell.lstrip().startswith(("=", "+", "@", "\uff1d", "|", "%")), cell
            assert not cell.startswith("-") or float(cell)


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    values = {"a": -1, "b": "-1e-05", "c": "+3.5"}
    paths = [save(tmp_path / name, weights(), hyper_parameters=values) for name in ("a.ckpt", "b.ckpt")]
    table = cells(to_csv(compared(tmp_path, *paths)))
    assert [line[4] for line in table if line[0] == "hyper_parameters"] == ["-1", "-1e-05", "+3.5"]


@pytest.mark.parametrize(
    "text", ["a|b", "a\nb", "<script>alert(1)</script>", "`code`", "**bold**", "@team #12", "a\x07b"]
)
def test_markdown_shows_names_and_values_as_they_are(tmp_path: Path, text: str) -> None:
    first = save(tmp_path / "a.ckpt", weights(), hyper_parameters={text: text})
    second = save(tmp_path / "b.ckpt", weights(), hyper_parameters={text: 1})
    shown = to_markdown(compared(tmp_path, first, second))
    (line,) = (line for line in shown.splitlines() if "| differing | " in line and line.endswith("| 1 |"))
    unescaped = line.replace("\\|", "")
    assert unescaped.count("|") == 5, "four cells"
    for character in "<`*@#\x07":
        assert character not in line.replace(f"\\{character}", "").replace("&#64;", "")


def test_markdown_has_a_table_for_each_section_and_says_what_is_left_out(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", weights(), epoch=1)
    second = save(tmp_path / "b.ckpt", weights(1), epoch=2)
    shown = to_markdown(compared(tmp_path, first, second, limit=1))
    assert "verdict: different; weights: different" in shown
    assert "| name | status | a.ckpt | b.ckpt |" in shown
    for heading in ("# Comparison of 2", "## Identity", "## Training", "## Model", "## Tensors"):
        assert heading in shown
    assert "Not listed: 2 further rows." in shown


def test_the_best_metric_is_bold(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", weights())
    sides = [side(path, tmp_path, metrics={"loss": value}, path=f"{value}.ckpt") for value in (0.5, 0.25)]
    assert "| loss | differing | 0.5 | **0.25** |" in to_markdown(compare(sides))


def test_two_of_the_same_path_are_told_apart_by_id_and_long_values_are_cut(tmp_path: Path) -> None:
    paths = [save(tmp_path / d / "x.ckpt", weights(), hyper_parameters={"prompt": "p" * 5000}) for d in ("one", "two")]
    sides = [side(path, path.parent) for path in paths]
    table = cells(to_csv(compare(sides)))
    assert table[0][4:] == [f"x.ckpt ({one.entry.id})" for one in sides]
    (prompt,) = (line for line in table if line[1] == "prompt")
    assert len(prompt[4]) == MAX_CELL
