"""`ckptd index`: verify says what is missing, extra and changed; rebuild makes it right, root by root."""

import json
import os

import pytest

from tests.daemon.command_line import ckptd, ckptd_json, save

NAME = ".checkpoint_index.json"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("a", "b"):
        save(root / "exp" / "checkpoints" / f"{name}.ckpt")
    save(root / "other" / "checkpoints" / "c.ckpt")
    (root / "exp" / "checkpoints" / "a.ckpt.metadata.yaml").write_text("exp_name: exp\n")
    assert ckptd("index", "rebuild", "tree", home=tmp_path).returncode == 0
    return root


def edited(tree, change):
    document = json.loads((tree / NAME).read_text())
    change(document["checkpoints"])
    (tree / NAME).write_text(json.dumps(document))


def differences(tmp_path, *paths, status=1):
    answer = ckptd_json("index", "verify", *paths, home=tmp_path, status=status)
    return {(each["kind"], each["path"]) for each in answer["differences"]}


def test_each_kind_of_difference_is_told_and_a_rebuild_takes_them_away(tmp_path, tree):
    assert differences(tmp_path, tree, status=0) == set()

    def change(experiments):
        experiments["exp"]["checkpoints"].remove("exp/checkpoints/b.ckpt")
        experiments["exp"]["checkpoints"].append("exp/checkpoints/gone.ckpt")
        experiments["exp"]["metadata_files"] = ["exp/checkpoints/gone.ckpt.metadata.yaml"]
        experiments["exp"]["last_modified"] = 1_700_000_000.0
        experiments["renamed"] = experiments.pop("other")

    edited(tree, change)
    assert differences(tmp_path, tree) == {
        ("missing", "exp/checkpoints/b.ckpt"),
        ("extra", "exp/checkpoints/gone.ckpt"),
        ("missing", "exp/checkpoints/a.ckpt.metadata.yaml"),
        ("extra", "exp/checkpoints/gone.ckpt.metadata.yaml"),
        ("changed", "exp/checkpoints/a.ckpt"),
        ("changed", "other/checkpoints/c.ckpt"),
    }
    result = ckptd("index", "verify", "tree", home=tmp_path)
    assert "6 differences: 2 missing, 2 extra, 2 changed; `ckptd index rebuild`" in result.stderr
    assert ckptd("index", "rebuild", "tree", home=tmp_path).returncode == 0
    assert differences(tmp_path, tree, status=0) == set()


@pytest.mark.slow
def test_an_experiment_that_its_config_names_otherwise_now_is_changed(tmp_path, tree):
    (tree / "other" / "config.yaml").write_text("exp_name: paper\n")
    assert differences(tmp_path, tree) == {("changed", "other/checkpoints/c.ckpt")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"version": "2.0", "checkpo', "torn or not one"),
        ("", "torn or not one"),
        ("[1, 2]", "torn or not one"),
        ('{"version": "1.0", "checkpoints": {}}', "has version 1.0; this ckptd knows 2.0"),
    ],
)
def test_an_index_that_cannot_be_read_is_a_difference_and_is_replaced(tmp_path, text, says):
    save(tmp_path / "tree" / "a.ckpt")
    index = tmp_path / "tree" / NAME
    index.write_text(text)
    verified = ckptd("index", "verify", "tree", home=tmp_path)
    assert verified.returncode == 1
    assert says in verified.stdout
    assert "run `ckptd index rebuild`" in verified.stdout
    (rebuilt,) = ckptd_json("index", "rebuild", tmp_path / "tree", home=tmp_path)["indexes"]
    assert rebuilt["written"]
    assert says in rebuilt["detail"]
    assert json.loads(index.read_text())["version"] == "2.0"


@pytest.mark.slow
def test_an_index_of_a_later_ckptd_is_not_replaced(tmp_path, tree):
    text = '{"version": "3.1", "checkpoints": {}, "more": 1}'
    (tree / NAME).write_text(text)
    verified = ckptd("index", "verify", "tree", home=tmp_path)
    assert (verified.returncode, "use the ckptd that wrote it" in verified.stdout) == (1, True)
    rebuilt = ckptd("index", "rebuild", "tree", home=tmp_path)
    assert rebuilt.returncode == 3
    assert "version 3.1" in rebuilt.stderr
    assert "delete the file first" in rebuilt.stderr
    assert (tree / NAME).read_text() == text


@pytest.mark.slow
def test_a_root_that_cannot_be_written_does_not_keep_the_others_from_it(tmp_path, tree):
    second = tmp_path / "second"
    save(second / "d.ckpt")
    (second / NAME).mkdir()
    save(tmp_path / "third" / "e.ckpt")
    answer = ckptd_json("index", "rebuild", tree, second, tmp_path / "third", home=tmp_path, status=3)
    assert [os.path.basename(each["root"]) for each in answer["indexes"]] == ["tree", "third"]
    (problem,) = answer["problems"]
    assert str(second / NAME) in problem
    assert [name for name in os.listdir(second) if name.endswith(".tmp")] == []
    assert differences(tmp_path, tree, tmp_path / "third", status=0) == set()
    assert differences(tmp_path, tree, second) == {("changed", NAME)}


@pytest.mark.slow
def test_a_rebuild_that_finds_nothing_new_leaves_the_file_alone(tmp_path, tree):
    before = (tree / NAME).stat()
    (rebuilt,) = ckptd_json("index", "rebuild", tree, home=tmp_path)["indexes"]
    assert (rebuilt["written"], rebuilt["checkpoints"]) == (False, 3)
    assert (tree / NAME).stat().st_mtime_ns == before.st_mtime_ns
