"""The commands against a real daemon: found without being told where, and telling the truth."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.command_line import CKPTD, ckptd_json, damage, environment, save
from tests.daemon.command_line import ckptd_afresh as ckptd  # those that need a daemon are started afresh here

DEADLINE_S = 60


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A person's home with `outputs/` and a daemon on it."""
    home = tmp_path_factory.mktemp("home")
    save(home / "outputs" / "first" / "checkpoints" / "a.ckpt", epoch=3)
    save(home / "outputs" / "second" / "checkpoints" / "a.ckpt", epoch=4)
    damage(save(home / "outputs" / "second" / "checkpoints" / "broken.ckpt"))
    log = (home / "log").open("wb")
    daemon = subprocess.Popen(
        [CKPTD, "serve", "--port", "0", "--port-file", "port", "--access", "token", "--sidecar-delay-s", "0"],
        cwd=home,
        env=environment(home),
        stdout=log,
        stderr=log,
    )
    try:
        wait_until(lambda: (home / "port").exists() or daemon.poll() is not None, "the daemon listens")
        assert daemon.poll() is None, (home / "log").read_text()
        wait_until(lambda: len(ckptd_json("ls", "--all", home=home)) == 3, "the tree is listed")
        yield home
    finally:
        daemon.terminate()
        assert daemon.wait(20) == 0, (home / "log").read_text()
        log.close()


def test_ls_finds_the_daemon_and_leaves_invalid_ones_out_unless_asked(home):
    entries = ckptd_json("ls", home=home)
    assert sorted((entry["exp_name"], entry["epoch"]) for entry in entries) == [("first", 3), ("second", 4)]
    assert len(ckptd_json("ls", "--all", home=home)) == 3


def test_ls_works_from_any_directory_while_there_is_one_daemon(home, tmp_path):
    result = subprocess.run(
        [CKPTD, "ls"], cwd=tmp_path, env=environment(home), capture_output=True, text=True, timeout=50, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_ls_filters_sorts_and_limits(home):
    assert [e["exp_name"] for e in ckptd_json("ls", "--exp-name", "first", home=home)] == ["first"]
    by_epoch = ckptd_json("ls", "--sort-by", "epoch", "--sort-order", "desc", "--limit", "1", home=home)
    assert [e["epoch"] for e in by_epoch] == [4]


def test_in_a_pipe_ls_tells_a_line_of_fields_for_each(home):
    lines = [line.split("\t") for line in ckptd("ls", "first", home=home).stdout.splitlines()]
    ((checkpoint_id, path, health, epoch, *_),) = lines
    assert (len(checkpoint_id), health, epoch) == (16, "valid", "3")
    assert path == str(home / "outputs" / "first" / "checkpoints" / "a.ckpt")


def test_an_unknown_filter_value_exits_2_with_the_daemon_s_own_words(home):
    result = ckptd("ls", "--health", "splendid", home=home)
    assert result.returncode == 2
    assert "splendid" in result.stderr or "health" in result.stderr


def test_show_takes_an_id_a_path_or_the_end_of_one(home):
    path = home / "outputs" / "first" / "checkpoints" / "a.ckpt"
    by_path = ckptd_json("show", path, home=home)
    assert by_path["epoch"] == 3
    assert ckptd_json("show", by_path["id"], home=home)["id"] == by_path["id"]
    assert ckptd_json("show", "first/checkpoints/a.ckpt", home=home)["id"] == by_path["id"]


def test_show_names_the_candidates_when_several_fit(home):
    result = ckptd("show", "a.ckpt", home=home)
    assert result.returncode == 2
    assert "first/checkpoints/a.ckpt" in result.stderr
    assert "second/checkpoints/a.ckpt" in result.stderr


def test_show_of_an_invalid_one_exits_1_and_says_what_to_do(home):
    result = ckptd("show", "broken.ckpt", home=home)
    assert result.returncode == 1
    assert "error: archive." in result.stdout
    assert "restore" in result.stdout


def test_show_lists_tensors_on_request(home):
    shown = ckptd_json("show", "first/checkpoints/a.ckpt", "--tensors", home=home)
    assert sorted(tensor["name"] for tensor in shown["tensors"]) == [
        "state_dict.encoder.weight",
        "state_dict.head.bias",
    ]


def test_token_prints_what_curl_needs(home):
    import httpx

    token = ckptd("token", home=home).stdout.strip()
    url = f"http://127.0.0.1:{(home / 'port').read_text().strip()}/checkpoints"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_the_environment_s_url_goes_before_the_state(home):
    url = f"http://127.0.0.1:{(home / 'port').read_text().strip()}"
    token = ckptd("token", home=home).stdout.strip()
    assert ckptd("ls", home=home, CKPTD_URL=url, CKPTD_TOKEN=token).returncode == 0
    assert ckptd("ls", home=home, CKPTD_URL=url, CKPTD_TOKEN="wrong-wrong-wrong").returncode == 3


def test_rebuild_returns_when_it_is_done(home):
    answer = ckptd_json("rebuild", "--mode", "full", "--wait", home=home)
    assert answer["mode"] == "full"
    assert answer["revision"] >= 3


def test_metadata_leaves_the_daemon_s_tree_alone(home):
    result = ckptd("metadata", "outputs", home=home)
    assert result.returncode == 3
    assert "daemon" in result.stderr


def test_a_second_daemon_on_the_same_state_exits_3_and_says_who_has_it(home):
    result = ckptd("serve", "--port", "0", home=home)
    assert result.returncode == 3
    assert "Traceback" not in result.stderr


def test_watch_tells_what_exists_then_what_happens_and_ends_at_ctrl_c(home):
    with subprocess.Popen(
        [CKPTD, "watch", "third"], cwd=home, env=environment(home), stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        try:
            assert next_change(watch)["kind"] == "synced"
            path = save(home / "outputs" / "third" / "checkpoints" / "new.ckpt", epoch=9)
            change = next_change(watch)
            while change["entry"] is None or change["entry"]["health"] != "valid":
                change = next_change(watch)
            assert (change["kind"], change["entry"]["epoch"]) == ("upsert", 9)
            os.unlink(path)
            while change["kind"] != "delete":
                change = next_change(watch)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130
        finally:
            watch.kill()


def next_change(watch: subprocess.Popen[str]) -> dict:
    ready, _, _ = select.select([watch.stdout], [], [], DEADLINE_S)
    assert ready, "no change was told"
    return json.loads(watch.stdout.readline())
