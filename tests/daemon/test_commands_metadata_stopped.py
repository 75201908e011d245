"""Stopped at any moment, `ckptd metadata` leaves whole files, and run again it ends as one clean run does."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.daemon.bulk_trees import copied, left, mixed_tree, temporary_files
from tests.daemon.command_line import CKPTD, ckptd, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MISSING = 150
DEADLINE_S = 60.0
REPAIR = ("metadata", "tree", "--repair", "--remove-orphans")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return mixed_tree(tmp_path_factory.mktemp("pristine") / "tree", missing=MISSING)


@pytest.fixture
def tree(pristine, tmp_path):
    return copied(pristine, tmp_path / "tree")


def start(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [CKPTD, *REPAIR], cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def sidecars(tree: Path) -> int:
    return sum(name.endswith(".metadata.yaml") for _, _, names in os.walk(tree) for name in names)


def wait_for(process: subprocess.Popen[bytes], tree: Path, count: int) -> None:
    """Until so many sidecars are there, or the process has ended."""
    end = time.monotonic() + DEADLINE_S
    while process.poll() is None and sidecars(tree) < count:
        assert time.monotonic() < end
        time.sleep(0.0005)


def clean_run(tree: Path, home: Path) -> dict[str, bytes]:
    result = ckptd(*REPAIR, home=home)
    assert result.returncode == 1, result.stderr
    assert not temporary_files(tree)
    return left(tree)


def test_killed_at_random_again_and_again_it_ends_as_one_clean_run_does(pristine, tmp_path):
    tree = copied(pristine, tmp_path / "tree")
    before, right = sidecars(tree), clean_run(tree, tmp_path)
    assert len(right) > MISSING
    rng = random.Random(20260101)
    killed = 0
    for _ in range(3):
        copied(pristine, tree)
        for _ in range(3):
            process = start(tmp_path)
            wait_for(process, tree, rng.randrange(before, before + MISSING))
            time.sleep(rng.random() * 0.01)
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
        assert clean_run(tree, tmp_path) == right
    assert killed > 3


def test_killed_at_any_call_while_it_repairs_it_ends_as_one_clean_run_does(tmp_path):
    """Where files change their names: the calls between which a tree is neither as it was nor as it will be."""
    pristine = mixed_tree(tmp_path / "pristine", missing=1)
    tree = copied(pristine, tmp_path / "tree")
    right = clean_run(tree, tmp_path)
    killed = 0
    # Counted by strace for each thread apart, and there are several.
    for call, when in (("renameat2", 1), ("renameat2", 2), ("renameat2", 3), ("linkat", 1), ("unlinkat", 1)):
        copied(pristine, tree)
        inject = f"inject={call}:signal=KILL:when={when}"
        command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject, CKPTD, *REPAIR]
        run = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, check=False)
        killed += run.returncode not in (0, 1)
        assert clean_run(tree, tmp_path) == right, f"{call} #{when}"
    assert killed >= 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_it_after_what_is_in_hand_and_it_says_how_to_go_on(tree, tmp_path, number, code):
    process = start(tmp_path)
    wait_for(process, tree, sidecars(tree) + 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err.decode()
    assert not temporary_files(tree)
    assert b"Traceback" not in err
    assert b"again to end at once" in err
    written = [line for line in out.decode().splitlines() if "\twritten\t" in line]
    missing = sum(not path.with_name(path.name + ".metadata.yaml").exists() for path in tree.glob("run*/*/*.ckpt"))
    if missing:
        assert b"the same command goes on from here" in err
    assert len([line for line in written if line.startswith("tree/run")]) + missing == MISSING, "it told all it wrote"
    clean_run(tree, tmp_path)


def test_the_second_signal_ends_it_at_once_and_no_temporary_file_is_left(tree, tmp_path):
    process = start(tmp_path)
    wait_for(process, tree, sidecars(tree) + 1)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert b"again to end at once" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err
    assert not temporary_files(tree)
    clean_run(tree, tmp_path)


def test_what_is_done_is_not_done_again(tree, tmp_path):
    clean_run(tree, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*.yaml*")}
    clean_run(tree, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*.yaml*")} == before


def test_whoever_reads_the_answer_may_stop_reading(tree, tmp_path):
    """A closed pipe ends it with no half file and no traceback."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [CKPTD, *REPAIR, "--format", "jsonl"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode in (1, 141), err.decode()
    assert b"Traceback" not in err
    assert not temporary_files(tree)
