"""Chaos: whatever is done to a tree, and however blind the daemon is meanwhile, the catalog comes to equal the tree.

What health claims is sampled all the while and compared with what the writers did.
"""

import os
import pathlib
import shutil
import signal
import time
from typing import Any

import pytest

from tests.service.campaigns import (
    SETTINGS,
    Contents,
    HealthSampler,
    Shadow,
    Writers,
    assert_equal_to_tree,
    assert_quiet_tree_is_fully_described,
    built_lines,
    wait_quiet,
)
from tests.service.checkpoints import rename_in
from tests.service.daemons import Daemon, eventually

GENEROUS_S = 240.0
"""For a machine with other things to do; the figures are for the report, not for the test."""


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


@pytest.fixture
def daemon(tmp_path: pathlib.Path, outputs: pathlib.Path) -> Daemon:
    return Daemon(outputs, tmp_path / "state", **SETTINGS)


@pytest.fixture
def contents(tmp_path: pathlib.Path) -> Contents:
    return Contents(tmp_path / "contents")


def make_tree(top: pathlib.Path, contents: Contents, *, directories: int, files: int) -> None:
    """Many checkpoints, a few levels deep."""
    data = [contents.data(number) for number in range(8)]
    for number in range(directories):
        directory = top / f"{number % 7}/exp{number}/checkpoints"
        directory.mkdir(parents=True)
        for epoch in range(files):
            (directory / f"epoch={epoch}.ckpt").write_bytes(data[(number + epoch) % 8])


def wait_listed(daemon: Daemon, count: int, since: float) -> float:
    """Wait until so many are listed, none of them unknown, and it is claimed to be complete; returns the seconds."""

    def listed() -> bool:
        health = daemon.health()
        return health["checkpoint_count"] == count and health["by_health"] == {"valid": count}

    eventually(listed, f"{count} are listed", deadline_s=GENEROUS_S, every_s=0.1)
    took_s = time.time() - since
    daemon.wait_complete(since, deadline_s=GENEROUS_S)
    return took_s


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_made_while_the_daemon_was_stopped_is_found_all_20000_of_it(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents
) -> None:
    """Far more events than the kernel keeps: most are lost without a word. With the settings that users have."""
    daemon.settings = {}
    with daemon:
        daemon.wait_complete()
        daemon.signal(signal.SIGSTOP)
        make_tree(outputs, contents, directories=500, files=40)
        made_at = time.time()
        daemon.signal(signal.SIGCONT)
        with HealthSampler(daemon, lists=False) as sampler:
            print(f"20,000 listed {wait_listed(daemon, 20_000, made_at):.1f} s after SIGCONT")
        assert_equal_to_tree(daemon, outputs)
        sampler.check_claims()
        as_of = [s.health for s in sampler.samples if (s.health["complete_as_of"] or "") >= _iso(made_at)]
        assert as_of
        assert all(health["checkpoint_count"] == 20_000 for health in as_of)
        wait_quiet(daemon, deadline_s=GENEROUS_S)
        print(f"20,000 sidecars {time.time() - made_at:.1f} s after SIGCONT")
        assert daemon.health()["with_sidecar"] == 20_000


@pytest.mark.campaign
@pytest.mark.parametrize("size", [pytest.param((15, 10), id="150"), pytest.param((500, 10), marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_a_tree_that_is_moved_in_is_listed_whole(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents, tmp_path: pathlib.Path, size: tuple[int, int]
) -> None:
    directories, files = size
    make_tree(tmp_path / "elsewhere", contents, directories=directories, files=files)
    with daemon, HealthSampler(daemon, lists=False) as sampler:
        daemon.wait_complete()
        moved_at = time.time()
        (tmp_path / "elsewhere").rename(outputs / "moved")
        wait_listed(daemon, directories * files, moved_at)
        assert_equal_to_tree(daemon, outputs)
        (outputs / "moved").rename(outputs / "again")
        daemon.wait_complete(deadline_s=GENEROUS_S)
        assert_equal_to_tree(daemon, outputs)
        (outputs / "again").rename(tmp_path / "out")
        daemon.wait_complete(deadline_s=GENEROUS_S)
        assert not daemon.entries()
    sampler.check_claims()


@pytest.mark.campaign
def test_a_root_that_is_deleted_and_made_again_is_followed(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents
) -> None:
    make_tree(outputs / "before", contents, directories=10, files=10)
    with daemon, HealthSampler(daemon, lists=False) as sampler, Shadow(daemon) as shadow:
        wait_listed(daemon, 100, time.time())
        for round_number in range(3):
            _remove_tree(outputs)
            make_tree(outputs / f"after{round_number}", contents, directories=5, files=round_number + 1)
            made_at = time.time()
            wait_listed(daemon, 5 * (round_number + 1), made_at)
            assert_equal_to_tree(daemon, outputs)
        rename_in(outputs / "late.ckpt", contents.data(0))
        eventually(lambda: "late.ckpt" in daemon.entries(), "the new root is watched")
        assert_quiet_tree_is_fully_described(daemon, outputs)
        shadow.assert_caught_up()
    sampler.check_claims()
    assert not shadow.wrong


def test_a_root_that_is_gone_is_no_deletion_of_what_is_offline_and_comes_back_whole(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents, tmp_path: pathlib.Path
) -> None:
    """Renamed away and back: what is listed at the end is what is there."""
    make_tree(outputs, contents, directories=5, files=4)
    with daemon:
        wait_listed(daemon, 20, time.time())
        outputs.rename(tmp_path / "away")
        eventually(lambda: daemon.health()["catalog_status"] == "unhealthy", "it is missed")
        (tmp_path / "away").rename(outputs)
        wait_listed(daemon, 20, time.time())
        assert_equal_to_tree(daemon, outputs)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
@pytest.mark.timeout(180)
def test_after_200_operations_at_random_by_four_processes_at_once_the_catalog_equals_the_tree(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents, tmp_path: pathlib.Path, seed: int
) -> None:
    """They create, overwrite, truncate, rename and delete each other's files and directories, and care for nothing."""
    with (
        daemon,
        Writers(outputs, contents, tmp_path / "logs", count=4, seed=seed, shared=True) as writers,
        HealthSampler(daemon, lists=False) as sampler,
        Shadow(daemon) as shadow,
    ):
        writers.start(50)
        ended_at = writers.wait()
        daemon.wait_complete(ended_at)
        eventually(lambda: not daemon.health()["pending"] or _only_writing(daemon), "all looks have ended")
        assert_equal_to_tree(daemon, outputs)
        assert_quiet_tree_is_fully_described(daemon, outputs)
        assert_equal_to_tree(daemon, outputs)
        shadow.assert_caught_up()
    sampler.check_claims()
    assert not shadow.wrong


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 16))])
@pytest.mark.timeout(180)
def test_what_is_said_during_200_operations_by_four_processes_is_true_at_every_moment(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents, tmp_path: pathlib.Path, seed: int
) -> None:
    """Each process has its own names, so that it is known what every path held, and when."""
    with (
        daemon,
        Writers(outputs, contents, tmp_path / "logs", count=4, seed=seed, shared=False) as writers,
        HealthSampler(daemon) as sampler,
        Shadow(daemon) as shadow,
    ):
        for _ in range(5):
            writers.start(10)
            daemon.wait_complete(writers.wait())
            assert_equal_to_tree(daemon, outputs)
            shadow.assert_caught_up()
        history = writers.history()
    sampler.check_claims()
    assert sampler.check_completeness(history, contents) > 5
    shadow.check_truth(history, contents)
    assert len(shadow.told) > 100


def remove(tree: pathlib.Path) -> None:
    """Remove a tree in which the daemon removes its sidecars, or writes one, at the same time."""

    def is_gone() -> bool:
        shutil.rmtree(tree, ignore_errors=True)
        return not tree.exists()

    eventually(is_gone, f"{tree} is removed")


def test_the_log_line_of_a_build_counts_what_is_listed(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents
) -> None:
    make_tree(outputs, contents, directories=6, files=5)
    with daemon:
        eventually(lambda: built_lines(daemon), "the first build is logged")
        assert built_lines(daemon) == [30] == [len(daemon.entries())]
        remove(outputs / "0")
        left = len(list(outputs.rglob("*.ckpt")))
        token = daemon.rebuild("full")
        eventually(lambda: len(built_lines(daemon)) == 2, f"rebuild {token} is logged")
        assert built_lines(daemon)[1] == left == len(daemon.entries())


def test_a_daemon_that_starts_is_not_healthy_before_its_first_sweep_has_ended(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents
) -> None:
    make_tree(outputs, contents, directories=40, files=10)
    with HealthSampler(daemon, lists=False) as sampler, daemon:
        wait_listed(daemon, 400, time.time())

        def complete() -> dict[str, Any] | None:
            claims = (sample.health for sample in list(sampler.samples))
            return next((health for health in claims if health["complete_as_of"] is not None), None)

        first = eventually(complete, "a sample says complete")
    sampler.check_claims()
    assert first["checkpoint_count"] == 400


def test_our_sidecar_without_a_checkpoint_is_removed_and_a_persons_stays(
    daemon: Daemon, outputs: pathlib.Path, contents: Contents
) -> None:
    """A kill comes between the removal of a checkpoint and of its sidecar, a race between its check and its write."""
    rename_in(outputs / "a.ckpt", contents.data(0))
    ours, orphan, edited = (outputs / f"{name}.ckpt.metadata.yaml" for name in ("a", "gone", "edited"))
    with daemon:
        eventually(ours.exists, "the sidecar is written")
        shutil.copy(ours, orphan)
        edited.write_text(ours.read_text() + "# keep\n")
        eventually(lambda: not orphan.exists(), "the orphan is removed")
        daemon.wait_complete()
        assert ours.exists()
        assert edited.read_text().endswith("# keep\n")


def _only_writing(daemon: Daemon) -> bool:
    health = daemon.health()
    return bool(health["pending"] <= health["by_health"].get("writing", 0))


def _remove_tree(top: pathlib.Path) -> None:
    """rm -r beside a daemon that writes sidecars meanwhile: a directory may not be empty at the first try."""

    def removed() -> bool:
        shutil.rmtree(top, ignore_errors=True)
        return not os.path.lexists(top)

    eventually(removed, f"{top} is removed")


def _iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03}Z"
