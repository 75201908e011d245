"""`ckptd metadata` over a whole tree: it audits, writes, repairs and tidies up, and says what it did."""

import csv
import io
import json
import os
import re

import pytest
import yaml

from ckptd.catalog.roots import Root
from ckptd.daemon.rootlock import RootLock
from tests.daemon.bulk_trees import FAKE, left, mixed_tree, ours, sidecar_of, temporary_files
from tests.daemon.command_line import ckptd, ckptd_json, save
from tests.daemon.test_cli import on_a_terminal

AUDIT = {
    "checkpoints": 10,
    "with_metadata": 3,
    "without_metadata": 6,
    "ours": 1,
    "foreign": 1,
    "wrong": 1,
    "stale": 2,
    "unreadable": 1,
    "invalid": 1,
    "links": 1,
    "orphans": 2,
}


@pytest.fixture
def tree(tmp_path):
    return mixed_tree(tmp_path / "tree")


def by_name(answer):
    return {os.path.basename(each["checkpoint_path"]): each for each in answer["checkpoints"]}


def test_a_dry_run_counts_every_kind_estimates_the_time_and_touches_nothing(tmp_path, tree):
    before = left(tree)
    answer = ckptd_json("metadata", tree, "--dry-run", home=tmp_path, status=1)
    assert answer["audit"] == AUDIT
    assert answer["counts"] == {
        "would write": 4,
        "current": 2,
        "stale": 1,
        "unreadable": 1,
        "wrong": 1,
        "invalid checkpoint": 1,
    }
    assert answer["estimate"]["described_per_second"] > 0
    assert answer["estimate"]["estimated_seconds"] > 0
    assert left(tree) == before


def test_what_is_missing_or_ours_and_stale_is_written_and_nothing_else_is_touched(tmp_path, tree):
    before = left(tree)
    answer = ckptd_json("metadata", tree, home=tmp_path, status=1)
    after = left(tree)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "exp/checkpoints/ours_stale.ckpt.metadata.yaml",
        *(f"run{n}/checkpoints/epoch={n}.ckpt.metadata.yaml" for n in range(3)),
    }
    assert before.keys() <= after.keys()
    assert not temporary_files(tree)
    assert answer["counts"]["written"] == 4
    assert "archive" in by_name(answer)["cut.ckpt"]["detail"]
    assert "link.ckpt" not in by_name(answer)
    again = ckptd_json("metadata", tree, home=tmp_path, status=1)
    assert again["counts"] == {"current": 6, "stale": 1, "unreadable": 1, "wrong": 1, "invalid checkpoint": 1}
    assert left(tree) == after


def test_repair_tells_each_change_keeps_what_was_there_and_a_second_one_changes_nothing(tmp_path, tree):
    before = left(tree)
    answer = ckptd_json("metadata", tree, "--repair", home=tmp_path, status=1)
    runs = tree / "exp" / "checkpoints"
    wrong = by_name(answer)["wrong.ckpt"]
    assert wrong["outcome"] == "repaired"
    told = {change["field"]: (change["old"], change["new"]) for change in wrong["changes"] if not change["missing"]}
    assert told == {
        "checkpoint_path": ("checkpoints/best.ckpt", str(runs / "wrong.ckpt")),
        "training.epoch": (999, 4),
        "model.architecture": ("ocrmodel", None),
    }
    text = sidecar_of(runs / "wrong.ckpt").read_text()
    assert text.startswith("# from the old script\n")
    assert yaml.safe_load(text)["user"] == {"note": "keep me"}
    assert yaml.safe_load(text)["exp_name"] == "mine"
    for name in ("stale", "broken", "wrong"):
        path = f"exp/checkpoints/{name}.ckpt.metadata.yaml"
        assert left(tree)[f"{path}.bak"] == before[path]
    assert left(tree)["exp/checkpoints/mine.ckpt.metadata.yaml"] == before["exp/checkpoints/mine.ckpt.metadata.yaml"]
    after = left(tree)
    again = ckptd_json("metadata", tree, "--repair", home=tmp_path, status=1)
    assert again["counts"] == {"current": 9, "invalid checkpoint": 1}
    assert left(tree) == after


@pytest.mark.slow
def test_a_repaired_one_is_still_a_persons(tmp_path, tree):
    """Its values are believed, and it does not go when its checkpoint goes."""
    ckptd("metadata", tree, "--repair", home=tmp_path)
    path = tree / "exp" / "checkpoints" / "wrong.ckpt"
    audit = ckptd_json("metadata", path.parent, "--dry-run", home=tmp_path, status=1)
    assert by_name(audit)["wrong.ckpt"]["metadata"] == "foreign"


def test_a_dry_repair_shows_the_diff_that_the_repair_then_makes(tmp_path):
    path = save(tmp_path / "tree" / "a.ckpt", epoch=4)
    sidecar_of(path).write_text(FAKE)
    result = ckptd("metadata", "tree", "--repair", "--dry-run", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sidecar_of(path).read_text() == FAKE
    removed = [line[1:] for line in result.stdout.splitlines() if re.match(r"-[^-]", line)]
    added = [line[1:] for line in result.stdout.splitlines() if re.match(r"\+[^+]", line)]
    assert "checkpoint_path: checkpoints/best.ckpt" in removed
    assert (
        "# training.epoch: older generators wrote 999 to sort a file last, and the checkpoint says 4" in result.stdout
    )
    assert ckptd("metadata", "tree", "--repair", home=tmp_path).returncode == 0
    kept = [line for line in FAKE.splitlines() if line not in removed]
    assert sorted(sidecar_of(path).read_text().splitlines()) == sorted(kept + added)


@pytest.mark.slow
def test_a_stale_one_under_the_other_name_is_set_aside(tmp_path, tree):
    runs = tree / "exp" / "checkpoints"
    sidecar_of(runs / "stale.ckpt").rename(runs / "stale.metadata.yaml")
    ckptd("metadata", runs, "--repair", home=tmp_path)
    assert not (runs / "stale.metadata.yaml").exists()
    assert (runs / "stale.metadata.yaml.bak").exists()
    assert ckptd_json("metadata", runs, "--repair", home=tmp_path, status=1)["counts"]["current"] == 6


@pytest.mark.slow
def test_values_of_a_stale_one_are_not_taken_over_but_a_person_s_own_keys_are(tmp_path, tree):
    path = sidecar_of(tree / "exp" / "checkpoints" / "stale.ckpt")
    path.write_text(path.read_text().replace("source:", "user: {note: mine}\nsource:"))
    ckptd("metadata", tree, "--repair", home=tmp_path)
    written = yaml.safe_load(path.read_text())
    assert (written["training"]["epoch"], written["user"]) == (5, {"note": "mine"})


@pytest.mark.slow
def test_orphans_are_listed_and_only_removed_when_asked_and_a_persons_is_kept(tmp_path, tree):
    runs = tree / "exp" / "checkpoints"
    (runs / "weights.bin").write_bytes(b"x")
    (runs / "weights.metadata.yaml").write_text("of: weights.bin\n")
    listed = ckptd("metadata", "tree", home=tmp_path)
    assert "gone.ckpt.metadata.yaml\torphan\tby ckptd" in listed.stdout
    assert "noted.metadata.yaml\torphan\tby a person" in listed.stdout
    assert "metadata.orphan" in listed.stderr
    assert "weights.metadata.yaml" not in listed.stdout, "it is about a file of another suffix"
    dry = ckptd_json("metadata", tree, "--remove-orphans", "--dry-run", home=tmp_path, status=1)
    assert {orphan["outcome"] for orphan in dry["orphans"]} == {"orphan"}
    answer = ckptd_json("metadata", tree, "--remove-orphans", home=tmp_path, status=1)
    assert {os.path.basename(o["metadata_path"]): o["outcome"] for o in answer["orphans"]} == {
        "gone.ckpt.metadata.yaml": "removed",
        "noted.metadata.yaml": "set aside",
    }
    assert not sidecar_of(runs / "gone.ckpt").exists()
    assert (runs / "noted.metadata.yaml.bak").read_text() == "exp_name: a person's\n"
    assert (runs / "weights.metadata.yaml").exists()


@pytest.mark.slow
def test_the_answer_in_every_form_names_the_same(tmp_path, tree):
    ckptd("metadata", tree, home=tmp_path)
    whole = ckptd_json("metadata", tree, home=tmp_path, status=1)
    lines = ckptd("metadata", tree, "--format", "jsonl", home=tmp_path).stdout.splitlines()
    documents = [json.loads(line) for line in lines]
    assert sorted(map(str, documents)) == sorted(map(str, [*whole["checkpoints"], *whole["orphans"]]))
    rows = list(csv.DictReader(io.StringIO(ckptd("metadata", tree, "--format", "csv", home=tmp_path).stdout)))
    assert [row["outcome"] for row in rows] == [
        *(each["outcome"] for each in whole["checkpoints"]),
        *(each["outcome"] for each in whole["orphans"]),
    ]
    assert whole == ckptd_json("metadata", tree, "--format", "json", home=tmp_path, status=1)


@pytest.mark.slow
def test_progress_is_a_line_in_a_pipe_where_asked_and_nothing_otherwise(tmp_path):
    save(tmp_path / "tree" / "a.ckpt")
    assert "1 of 1" in ckptd("metadata", "tree", "--progress", home=tmp_path).stderr
    assert "of 1" not in ckptd("metadata", "tree", home=tmp_path).stderr
    assert "of 1" not in ckptd("metadata", "tree", "--no-progress", home=tmp_path).stderr


@pytest.mark.slow
def test_on_a_terminal_there_is_a_table_of_what_is_told_and_a_summary(tmp_path, tree):
    status, shown = on_a_terminal("metadata", "tree", home=tmp_path)
    assert status == 1
    assert "Traceback" not in shown
    assert re.search(r"cut\.ckpt +invalid checkpoint", shown)
    assert re.search(r"links, which get none +1", shown)


def test_a_daemon_s_tree_can_be_audited_and_the_refusal_to_write_says_what_to_do(tmp_path, tree):
    lock = RootLock(Root(os.fsencode(tree)))
    assert lock.held()
    try:
        refused = ckptd("metadata", tree, "--repair", home=tmp_path)
        assert refused.returncode == 3
        assert "stop it first" in refused.stderr
        assert ckptd_json("metadata", tree, "--dry-run", home=tmp_path, status=1)["audit"] == AUDIT
    finally:
        lock.release()


@pytest.mark.slow
def test_what_a_killed_run_left_is_cleaned_up_by_the_next(tmp_path):
    path = save(tmp_path / "tree" / "deep" / "a.ckpt")
    leftover = path.with_name(".a.ckpt.metadata.yaml.ckptd-00000000-1-1-00000000.tmp")
    leftover.write_text("half")
    os.utime(leftover, (1, 1))
    assert ckptd("metadata", "tree", "--dry-run", home=tmp_path).returncode == 0
    assert leftover.exists()
    assert ckptd("metadata", "tree", home=tmp_path).returncode == 0
    assert not leftover.exists()


@pytest.mark.slow
def test_a_sidecar_that_was_copied_along_with_a_newer_checkpoint_is_not_taken_for_current(tmp_path):
    """The quick look trusts size and time as the fast path does, and nothing less."""
    path = save(tmp_path / "tree" / "a.ckpt")
    sidecar_of(path).write_bytes(ours(path))
    assert ckptd_json("metadata", "tree", home=tmp_path)["counts"] == {"current": 1}
    save(path, epoch=9, names=("encoder.weight",))
    assert ckptd_json("metadata", "tree", home=tmp_path)["counts"] == {"written": 1}
    assert yaml.safe_load(sidecar_of(path).read_text())["training"]["epoch"] == 9
