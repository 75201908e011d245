"""Comparing, naming and watching checkpoints of a real daemon, by HTTP and by the commands."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import httpx
import pytest
import safetensors.torch
import torch

from ckptd.daemon.cli import main
from tests.daemon.command_line import CKPTD, ckptd, environment
from tests.service.daemons import DEADLINE_S, Daemon, eventually


def save(
    path: pathlib.Path, *, head: float = 1.0, epoch: int = 1, prefix: str = "model.", **hyper: Any
) -> pathlib.Path:
    """A checkpoint whose head holds one value, put into place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"{prefix}body.weight": torch.ones(8, 3), f"{prefix}head.weight": torch.full((4,), head)}
    temporary = path.with_name(f".{path.name}.part")
    torch.save({"state_dict": state, "epoch": epoch, "hyper_parameters": {"lr": 0.1, **hyper}}, temporary)
    return temporary.replace(path)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    outputs = home / "outputs"
    save(outputs / "one/checkpoints/best.ckpt")
    save(outputs / "one/checkpoints/copy.ckpt", prefix="module.")
    save(outputs / "one/checkpoints/other.ckpt", head=2.0, epoch=2, seed=7)
    save(outputs / "two/checkpoints/best.ckpt", head=3.0)
    for name in ("a", "b"):
        tensors = {"w": torch.ones(4)} if name == "a" else {"w": torch.zeros(4)}
        safetensors.torch.save_file(tensors, outputs / f"{name}.safetensors.ckpt")
    with Daemon(outputs, home / "state", sidecars="off") as running:
        eventually(lambda: [e["health"] for e in running.entries().values()] == ["valid"] * 6, "all are described")
        yield running


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(daemon: Daemon, *arguments: object) -> Done:
    return command(daemon.state.parent, *arguments, CKPTD_URL=daemon.url)


def command(home: pathlib.Path, *arguments: object, **extra: str) -> Done:
    """A command in this process: a new one takes half a second, and there are many here."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(home),
        mock.patch.dict(os.environ, environment(home, **extra), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def ids(daemon: Daemon) -> dict[str, str]:
    return {path: entry["id"] for path, entry in daemon.entries().items()}


def compared(daemon: Daemon, *checkpoint_ids: str) -> dict[str, Any]:
    query = "&".join(f"id={checkpoint_id}" for checkpoint_id in checkpoint_ids)
    return dict(httpx.get(f"{daemon.url}/checkpoints/compare?{query}", timeout=DEADLINE_S).json())


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_a_real_daemon_compares_what_it_has_described(daemon: Daemon) -> None:
    known = ids(daemon)
    best, copy = known["one/checkpoints/best.ckpt"], known["one/checkpoints/copy.ckpt"]
    other = known["one/checkpoints/other.ckpt"]
    answer = compared(daemon, best, copy, other)
    assert answer["weights"] == ["same", "different"]
    assert answer["tensors"]["prefixes"] == ["state_dict.model.", "state_dict.module.", "state_dict.model."]
    changes = {row["name"]: row["changes"] for row in answer["tensors"]["rows"]}
    assert changes == {"head.weight": ["same", "changed"], "body.weight": ["same", "same"]}
    settings = {row["name"]: row["status"] for row in answer["hyper_parameters"]["rows"]}
    assert settings == {"lr": "equal", "seed": "missing"}


def test_checksums_count_as_verified_once_the_daemon_has_read_every_byte(daemon: Daemon) -> None:
    known = ids(daemon)
    pair = (known["one/checkpoints/best.ckpt"], known["two/checkpoints/best.ckpt"])

    def evidence() -> bool:
        return bool(compared(daemon, *pair)["tensors"]["checksums"] == ["verified", "verified"])

    eventually(evidence, "both are verified")


def test_a_file_that_is_moved_is_gone_with_its_new_id(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    old = daemon.roots[0] / "three/checkpoints/old.ckpt"
    save(old, head=9.0)
    eventually(lambda: ids(daemon).get("three/checkpoints/old.ckpt"), "it is listed")
    gone = ids(daemon)["three/checkpoints/old.ckpt"]
    old.rename(old.with_name("new.ckpt"))
    new = eventually(lambda: ids(daemon).get("three/checkpoints/new.ckpt"), "it is listed under its new name")
    answer = eventually(
        lambda: (a := daemon.get(f"/checkpoints/{gone}")).status_code == 410 and a, "the old one is gone"
    )
    problem = answer.json()
    # Seen in one look or in two: then nothing says that they belong together.
    assert (problem["reason"], problem.get("moved_to")) in (("moved", new), ("removed", None))
    old.with_name("new.ckpt").unlink()
    eventually(lambda: "three/checkpoints/new.ckpt" not in ids(daemon), "it is gone")


# ---- diff ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["id", "beginning of the id", "relative path", "path", "end of the path", "name"])
def test_a_checkpoint_can_be_named_in_many_ways(daemon: Daemon, name: str) -> None:
    path = "one/checkpoints/other.ckpt"
    entry = daemon.entries()[path]
    given = {
        "id": entry["id"],
        "beginning of the id": entry["id"][:8],
        "relative path": f"outputs/{path}",
        "path": entry["checkpoint_path"],
        "end of the path": "other.ckpt",
        "name": entry["display_name"],
    }[name]
    shown = run(daemon, "show", given, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["path"] == path


def test_a_name_that_fits_several_or_none_exits_2_and_says_so(daemon: Daemon) -> None:
    several = run(daemon, "diff", "best.ckpt", "other.ckpt")
    assert several.returncode == 2
    assert "one/checkpoints/best.ckpt" in several.stderr
    assert "two/checkpoints/best.ckpt" in several.stderr
    for odd in ("nothing.ckpt", "zzzz", 'odd "name".ckpt', "a*b>"):
        none = run(daemon, "diff", "--", odd, "other.ckpt")
        assert (none.returncode, "is not in the catalog" in none.stderr) == (2, True), odd


def test_diff_exits_0_for_the_same_and_1_for_different_ones(daemon: Daemon) -> None:
    same = run(daemon, "diff", "one/checkpoints/best.ckpt", "copy.ckpt")
    assert same.returncode == 0, same.stdout + same.stderr
    different = run(daemon, "diff", "one/checkpoints/best.ckpt", "other.ckpt")
    assert different.returncode == 1
    lines = [line.split("\t") for line in different.stdout.splitlines()]
    assert ["training", "epoch", "differing", "1", "2"] in lines
    assert ["hyper_parameters", "seed", "missing", "", "7"] in lines
    assert ["tensors", "state_dict.model.head.weight", "changed", "float32 [4]", "float32 [4]"] in lines
    assert not [line for line in lines if line[1] == "lr"], "what is equal is left out"
    everything = run(daemon, "diff", "--all", "one/checkpoints/best.ckpt", "other.ckpt").stdout
    assert "hyper_parameters\tlr\tequal\t0.1\t0.1" in everything


def test_diff_of_some_sections_judges_by_those_alone(daemon: Daemon) -> None:
    pair = ("one/checkpoints/best.ckpt", "other.ckpt")
    assert run(daemon, "diff", "--only", "config", *pair).returncode == 0
    only = run(daemon, "diff", "--only", "training", "--only", "tensors", *pair)
    assert only.returncode == 1
    assert {line.split("\t")[0] for line in only.stdout.splitlines()} == {"identity", "training", "tensors"}


def test_what_cannot_be_compared_exits_1_and_is_said(daemon: Daemon) -> None:
    unsure = run(daemon, "diff", "--only", "tensors", "a.safetensors.ckpt", "b.safetensors.ckpt")
    assert unsure.returncode == 1
    assert "1 tensor could not be compared: there are no checksums" in unsure.stderr


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_diff_has_the_forms_of_the_wire(daemon: Daemon, form: str) -> None:
    done = run(daemon, "diff", "--format", form, "one/checkpoints/best.ckpt", "other.ckpt", "copy.ckpt")
    assert done.returncode == 1
    if form == "json":
        assert json.loads(done.stdout)["weights"] == ["different", "same"]
    else:
        first = {
            "csv": "section,name,status,best,one/checkpoints/best.ckpt",
            "markdown": "# Comparison of 3 checkpoints",
        }
        assert done.stdout.startswith(first[form])


def test_files_are_compared_without_a_daemon_as_with_one(daemon: Daemon) -> None:
    paths = [daemon.roots[0] / "one/checkpoints" / name for name in ("best.ckpt", "other.ckpt")]
    home = daemon.state.parent
    local = command(home, "diff", "--local", "--json", *paths)
    assert local.returncode == 1, local.stderr
    served = run(daemon, "diff", "--json", *paths)
    here, there = json.loads(local.stdout), json.loads(served.stdout)
    for section in ("metrics", "training", "hyper_parameters", "config", "model", "weights", "verdict"):
        assert here[section] == there[section], section
    assert here["tensors"]["rows"] == there["tensors"]["rows"]


def test_local_files_without_checksums_are_compared_by_their_digests_where_asked(
    daemon: Daemon, tmp_path: pathlib.Path
) -> None:
    first = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(4)}, first)
    (tmp_path / "b.safetensors").write_bytes(first.read_bytes())
    arguments = ("diff", "--local", "--in-process", "--only", "tensors", first, tmp_path / "b.safetensors")
    unsure = ckptd(*arguments, home=tmp_path)
    assert (unsure.returncode, "--level checksum" in unsure.stderr) == (1, True)
    assert ckptd(*arguments, "--level", "checksum", home=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "1 checkpoint cannot be compared"),
        (["a", "b", "c", "d", "e"], "5 checkpoints cannot be compared"),
        (["other.ckpt", "one/checkpoints/other.ckpt"], "are the same checkpoint"),
        (["--limit", "-1", "a", "b"], "--limit -1"),
        (["--local", "outputs/one", "outputs/two/checkpoints/best.ckpt"], "holds 3 checkpoints"),
        (["--local", "nothing.ckpt", "outputs/two/checkpoints/best.ckpt"], "does not exist"),
        (["--format", "xml", "a", "b"], "invalid choice"),
        (["--only", "identity", "a", "b"], "invalid choice"),
    ],
)
def test_wrong_usage_of_diff_exits_2(daemon: Daemon, arguments: list[str], message: str) -> None:
    wrong = run(daemon, "diff", *arguments)
    assert (wrong.returncode, message in wrong.stderr) == (2, True), wrong.stderr


def test_without_a_daemon_diff_exits_3(tmp_path: pathlib.Path) -> None:
    assert command(tmp_path, "diff", "a", "b").returncode == 3


# ---- show, ls --------------------------------------------------------------------------------------------------------


def test_show_lists_settings_and_tensors_where_asked(daemon: Daemon) -> None:
    shown = run(daemon, "show", "other.ckpt", "--settings", "--tensors").stdout
    assert "seed\t7" in shown
    assert "state_dict.model.head.weight\tfloat32\t4\t16 B" in shown
    assert "seed\t7" not in run(daemon, "show", "other.ckpt").stdout


def test_ls_takes_repeated_filters_and_searches(daemon: Daemon) -> None:
    both = run(daemon, "ls", "--exp-name", "one", "--exp-name", "two").stdout.splitlines()
    assert len(both) == 4
    assert len(run(daemon, "ls", "--format", "safetensors").stdout.splitlines()) == 2
    assert len(run(daemon, "ls", "epoch:2").stdout.splitlines()) == 1
    wrong = run(daemon, "ls", "--finding", "nonsense")
    assert (wrong.returncode, "finding" in wrong.stderr) == (2, True)


# ---- watch -----------------------------------------------------------------------------------------------------------


class Terminal:
    """A command on a terminal of its own, and everything that it has written."""

    def __init__(self, command: list[str], home: pathlib.Path, **extra: str) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
        env = environment(home, TERM="xterm-256color", **extra)
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=home, env=env)
        os.close(slave)
        self._master = master
        self.written = ""

    def read(self) -> None:
        """What has been written meanwhile; waits a moment for it."""
        if select.select([self._master], [], [], 0.1)[0]:
            self.written += os.read(self._master, 65536).decode("utf-8", "replace")

    def until(self, condition: Callable[[str], bool], what: str) -> None:
        """Read until what was written since the call fulfils `condition`."""
        begin, end = len(self.written), time.monotonic() + DEADLINE_S
        while not condition(self.written[begin:]):
            assert time.monotonic() < end, f"{what}: {self.written[-2000:]!r}"
            self.read()

    def close(self) -> int:
        """Ctrl-C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            with contextlib.suppress(OSError):  # EIO: the last writer has closed the terminal
                while self.process.poll() is None:
                    self.read()
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            os.close(self._master)


def test_on_a_terminal_watch_is_a_live_table(daemon: Daemon) -> None:
    terminal = Terminal([CKPTD, "watch"], daemon.state.parent, CKPTD_URL=daemon.url)
    try:
        terminal.until(lambda text: "6 checkpoints: 6 valid" in text and "other.ckpt" in text, "what exists is shown")
        path = daemon.roots[0] / "live/checkpoints/new.ckpt"
        save(path, epoch=41)
        terminal.until(lambda text: "live/checkpoints/new.ckpt" in text and "7 valid" in text, "the new one is shown")
        path.unlink()
        terminal.until(lambda text: "6 checkpoints: 6 valid" in text, "it is gone")
    finally:
        assert terminal.close() == 130
    assert "Traceback" not in terminal.written


def test_with_lines_watch_tells_each_change_in_a_sentence(daemon: Daemon) -> None:
    terminal = Terminal([CKPTD, "watch", "--lines", "--new"], daemon.state.parent, CKPTD_URL=daemon.url)
    path = daemon.roots[0] / "lines/checkpoints/new.ckpt"
    try:
        eventually(lambda: daemon.health()["checkpoint_count"] == 6, "the catalog is as it was")
        deadline = time.monotonic() + DEADLINE_S
        while "+ lines/checkpoints/new.ckpt valid" not in terminal.written:
            assert time.monotonic() < deadline, terminal.written
            save(path, epoch=time.monotonic_ns())  # once more: what happened before it listens is left out
            terminal.read()
        path.unlink()
        terminal.until(lambda text: "- lines/checkpoints/new.ckpt (removed)" in text, "its end is told")
    finally:
        assert terminal.close() == 130
    assert "best.ckpt" not in terminal.written


def test_watch_goes_on_behind_the_event_that_it_is_given(daemon: Daemon) -> None:
    command = [CKPTD, "watch", "--json"]
    env = environment(daemon.state.parent, CKPTD_URL=daemon.url)

    def first_lines(*more: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True, env=env) as watch:
            assert watch.stdout is not None
            for line in watch.stdout:
                told.append(json.loads(line))
                if told[-1]["kind"] == "synced":
                    break
            watch.kill()
        return told

    everything = first_lines()
    assert len(everything) == 7
    assert [change["kind"] for change in first_lines("--since", everything[-1]["event_id"])] == ["synced"]


@pytest.mark.slow
def test_a_daemon_that_goes_and_comes_back_is_told_on_standard_error(tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "outputs"
    save(outputs / "a.ckpt")
    daemon = Daemon(outputs, tmp_path / "state", sidecars="off")
    with daemon:
        eventually(daemon.entries, "it is listed")
        command = [CKPTD, "watch", "--json", "--state-dir", str(tmp_path / "state")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, env=environment(tmp_path), cwd=tmp_path, **pipes) as watch:
            assert watch.stdout is not None
            assert watch.stderr is not None
            assert json.loads(watch.stdout.readline())["kind"] == "upsert"
            assert json.loads(watch.stdout.readline())["kind"] == "synced"
            daemon.stop()
            assert watch.stderr.readline().startswith("ckptd: waiting for the daemon")
            daemon.start()
            assert watch.stderr.readline() == "ckptd: the daemon is back\n"
            assert json.loads(watch.stdout.readline())["kind"] == "synced"
            watch.kill()
