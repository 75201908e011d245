"""The main job: a checkpoint appears, and all who listen know what it is; the daemon starts and stops cleanly."""

import pathlib
import re
import signal
import subprocess
import sys

import httpx
import pytest
import yaml

from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import DEADLINE_S, Daemon, eventually


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


@pytest.fixture
def daemon(tmp_path: pathlib.Path, outputs: pathlib.Path) -> Daemon:
    return Daemon(outputs, tmp_path / "state", sidecar_delay_s=0.1)


def test_a_checkpoint_that_is_renamed_in_is_described_to_a_listener_and_gets_its_sidecar(
    daemon: Daemon, outputs: pathlib.Path
) -> None:
    with daemon, daemon.events() as events:
        assert next(events)["type"] == "reset"
        assert next(m for m in events if m["type"] != "batch")["type"] == "complete"
        rename_in(outputs / "exp/checkpoints/epoch=3-step=300.ckpt", checkpoint_bytes())
        told = next(message for message in events if message["type"] == "upsert")
        entry = told["checkpoints"][0]
        assert (entry["path"], entry["exp_name"], entry["epoch"], entry["health"], entry["safety"]) == (
            "exp/checkpoints/epoch=3-step=300.ckpt",
            "exp",
            3,
            "valid",
            "safe",
        )
        assert entry["n_parameters"] == 16 * 16 + 16
        told = next(m for m in events if m["type"] == "upsert" and m["checkpoints"][0]["has_metadata"])
        assert told["checkpoints"][0]["metadata_source"] == "daemon"
        sidecar = yaml.safe_load((outputs / "exp/checkpoints/epoch=3-step=300.ckpt.metadata.yaml").read_text())
        assert sidecar["schema_version"] == "1.0"
        assert sidecar["training"]["epoch"] == 3


def test_a_checkpoint_that_is_written_in_place_ends_up_described(daemon: Daemon, outputs: pathlib.Path) -> None:
    data = checkpoint_bytes(1, elements=512)
    with daemon:
        path = outputs / "slow.ckpt"
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            writing = eventually(lambda: daemon.entries().get("slow.ckpt"), "the unfinished file is listed")
            assert writing["health"] == "writing"
            file.write(data[len(data) // 2 :])
        eventually(lambda: daemon.entries()["slow.ckpt"]["health"] == "valid", "the finished file is valid")


def test_a_deleted_checkpoint_takes_our_sidecar_with_it_and_leaves_a_persons(
    daemon: Daemon, outputs: pathlib.Path
) -> None:
    ours, theirs = outputs / "a.ckpt", outputs / "b.ckpt"
    note = outputs / "b.ckpt.metadata.yaml"
    note.write_text("exp_name: mine\n")
    with daemon:
        rename_in(ours, checkpoint_bytes(1))
        rename_in(theirs, checkpoint_bytes(2))
        sidecar = outputs / "a.ckpt.metadata.yaml"
        eventually(sidecar.exists, "the sidecar is written")
        eventually(lambda: daemon.entries().get("b.ckpt", {}).get("exp_name") == "mine", "the person's sidecar is read")
        ours.unlink()
        theirs.unlink()
        eventually(lambda: not daemon.entries(), "both are gone from the list")
        eventually(lambda: not sidecar.exists(), "our sidecar is removed")
        assert note.read_text() == "exp_name: mine\n"


def test_a_restart_serves_what_was_known_and_reads_nothing_again(daemon: Daemon, outputs: pathlib.Path) -> None:
    for number in range(20):
        write_in_place(outputs / f"run/{number}.ckpt", checkpoint_bytes(number))
    with daemon:
        daemon.wait_complete()
        eventually(lambda: daemon.health()["with_sidecar"] == 20, "all have sidecars")
        eventually(lambda: daemon.health()["verification"]["by_level"] == {"checksum": 20}, "all are verified")
        before = {path: entry["revision"] for path, entry in daemon.entries().items()}
        assert daemon.stop() == 0
        daemon.start()
        assert {path: entry["revision"] for path, entry in daemon.entries().items()} == before
        daemon.wait_complete()
        eventually(lambda: "catalog built: 20 entries (20 known, 0 inspected)" in daemon.log(), "nothing was inspected")


def test_sigterm_says_bye_to_listeners_and_ends_with_0(daemon: Daemon) -> None:
    with daemon, daemon.events() as events:
        next(events)
        daemon.signal(signal.SIGTERM)
        assert [message for message in events if message["type"] == "bye"]
        assert daemon.process is not None
        assert daemon.process.wait(DEADLINE_S) == 0


def test_sighup_makes_a_sweep_that_the_stream_tells_the_end_of(daemon: Daemon) -> None:
    with daemon, daemon.events() as events:
        daemon.signal(signal.SIGHUP)
        assert next(message for message in events if message["type"] == "rebuilt")["token"]


def test_a_rebuild_on_demand_answers_202_and_is_told_when_done(daemon: Daemon, outputs: pathlib.Path) -> None:
    rename_in(outputs / "a.ckpt", checkpoint_bytes())
    with daemon, daemon.events() as events:
        token = daemon.rebuild("full")
        assert next(message for message in events if message["type"] == "rebuilt")["token"] == token


def test_nothing_outlives_the_service_not_even_a_killed_one(daemon: Daemon) -> None:
    with daemon:
        children = eventually(lambda: _descendants(daemon.pid), "the zygote runs")
        daemon.kill()
        eventually(lambda: not any(map(_is_alive, children)), "its processes have ended")


def test_a_taken_port_and_a_locked_state_end_the_start_with_3_and_say_why(
    daemon: Daemon, outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with daemon:
        port = int(daemon.port_file.read_text())
        other = Daemon(outputs, tmp_path / "other", port=port)
        taken = subprocess.run(other.command(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert taken.returncode == 3
        assert f"127.0.0.1:{port} is taken" in taken.stderr
        locked = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert locked.returncode == 3
        assert str(daemon.pid) in locked.stderr


def test_a_bad_setting_ends_the_start_with_2_and_names_it(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = Daemon(outputs, tmp_path / "state", workers="many").command()
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 2
    assert re.search(r"workers: 'many' \(from --workers\)", refused.stderr)


def test_a_root_that_is_a_file_ends_the_start_with_2(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "outputs"
    file.write_text("")
    command = Daemon(file, tmp_path / "state").command()
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 2
    assert "is not a directory" in refused.stderr


def test_the_server_never_imports_torch(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Not at the start, not for a checkpoint, not for a request."""
    code = (
        "import sys; from ckptd.daemon.cli import main; main(sys.argv[1:]);"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    daemon = Daemon(outputs, tmp_path / "state")
    command = [sys.executable, "-c", code, *daemon.command()[3:]]
    rename_in(outputs / "a.ckpt", checkpoint_bytes())
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        daemon.process = process  # type: ignore[assignment]
        daemon.log_file.touch()
        eventually(daemon.is_up, "the service answers")
        eventually(lambda: daemon.entries().get("a.ckpt", {}).get("health") == "valid", "a checkpoint is described")
        httpx.get(f"{daemon.url}/metrics")
        process.terminate()
        modules = process.communicate(timeout=DEADLINE_S)[0]
    assert "'starlette'" in modules
    assert not {name for name in ("torch", "numpy", "lightning", "pandas") if f"'{name}'" in modules}


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_socket_of_systemd_on_an_open_address_asks_for_a_token(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Whatever the settings name: what counts is what is really listened on."""
    launcher = (
        "import os, socket, sys; s = socket.create_server(('0.0.0.0', 0)).detach();"
        "os.dup2(os.dup(s), 3, inheritable=True);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[1], sys.argv[1:])"
    )
    daemon = Daemon(outputs, tmp_path / "state")
    command = [part for part in daemon.command() if part != "--allow-anonymous"]
    daemon.process = subprocess.Popen([sys.executable, "-c", launcher, *command], cwd="/")
    with daemon:
        eventually(daemon.is_up, "the service answers")
        assert daemon.get("/checkpoints").status_code == 401
        token = (tmp_path / "state/token").read_text().strip()
        answer = httpx.get(f"{daemon.url}/checkpoints", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
