"""check_tree finds what it is there to find, and finds nothing in this tree."""

import importlib.util
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def check_tree():
    spec = importlib.util.spec_from_file_location("check_tree", REPO / "scripts/lib/check_tree.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.0] - unreleased\n")
    (tmp_path / "constraints.txt").write_text("# pins\ntorch==2.13.0\n")
    return tmp_path


def test_a_tree_in_order_passes(check_tree, tree):
    assert check_tree.main(str(tree)) == 0


def test_a_version_that_the_changelog_does_not_know_is_found(check_tree, tree, capsys):
    (tree / "CHANGELOG.md").write_text("## [1.1.0] - 2026-01-01\n")
    assert check_tree.main(str(tree)) == 1
    assert "1.1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["torch==2.13.0+cpu", "torch @ file:///wheels/t.whl", "--index-url https://x", "torch"]
)
def test_a_constraint_that_is_no_plain_pin_is_found(check_tree, tree, capsys, line):
    (tree / "constraints.txt").write_text(line + "\n")
    assert check_tree.main(str(tree)) == 1
    assert "constraints.txt:1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path = '/ho" + "me/alice/outputs'", True),
        ("cd /ro" + "ot/ckptd", True),
        ("/Us" + "ers/alice/x", True),
        ("/srv/outputs and $HOME/outputs and ~/outputs", False),
        ("/home/user/outputs", False),
        ("https://example.org/work/x", False),
    ],
)
def test_directories_of_one_machine_are_found(check_tree, tree, line, found):
    path = tree / "notes.md"
    path.write_text(line + "\n")
    assert bool(list(check_tree.machine_paths(tree, [path]))) is found


def test_the_checkout_s_own_place_is_found(check_tree, tree):
    path = tree / "notes.md"
    path.write_text(f"see {tree}/pyproject.toml\n")
    assert list(check_tree.machine_paths(tree, [path]))


def test_a_script_that_cannot_be_executed_is_found(check_tree, tree):
    (tree / "scripts" / "run").write_text("echo\n")
    problems = list(check_tree.executables(tree))
    assert any("#!" in problem for problem in problems)
    assert any("chmod" in problem for problem in problems)


def test_this_tree_passes(check_tree, capsys):
    status = check_tree.main(str(REPO))
    assert status == 0, capsys.readouterr().out
