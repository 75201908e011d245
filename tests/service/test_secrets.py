"""Secrets and tokens of a real service: who sees them, and how long they count."""

import pathlib
import signal
import subprocess
import sys

import httpx
import pytest
import torch
import yaml

from tests.service.daemons import DEADLINE_S, Daemon, eventually
from tests.service.token_daemons import TokenDaemon

SECRETS = ("AKIA" + "IOSFODNN7EXAMPLE", "hunter2-of-alice", "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a")


def write_run(outputs: pathlib.Path) -> None:
    """A checkpoint whose hyper-parameters, config and overrides hold secrets."""
    run = outputs / "exp"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".hydra").mkdir()
    aws, password, github = SECRETS
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"data": {"note": aws}, "exp_name": "exp"}))
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"model.head.hub_token={github}"]))
    parameters = {"db": {"password": password, "host": "db.example"}, "lr": 0.1}
    torch.save({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": parameters}, run / "checkpoints" / "a.ckpt")


def holders(directory: pathlib.Path) -> list[str]:
    """Files beneath a directory that hold a secret, in whatever case."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes().lower()
            found += [path.name for secret in SECRETS if secret.lower().encode() in data]
    return sorted(set(found))


@pytest.mark.slow
def test_no_store_log_file_or_answer_of_the_service_ever_holds_a_secret(tmp_path: pathlib.Path) -> None:
    outputs, state = tmp_path / "outputs", tmp_path / "state"
    write_run(outputs)
    theirs = set(holders(outputs))
    with Daemon(outputs, state, sidecar_delay_s=0.05, log_level="debug", access_log="all") as daemon:
        eventually(lambda: daemon.health()["with_sidecar"] == 1, "the sidecar is written")
        (entry,) = daemon.entries().values()
        detail = daemon.get(f"/checkpoints/{entry['id']}").json()
        assert detail["hyper_parameters"] == {"db": {"password": "[redacted]", "host": "db.example"}, "lr": 0.1}
        assert detail["redacted"] == 3
        assert daemon.get("/checkpoints", q="db.example").json()["total"] == 1
        for secret in SECRETS:
            assert daemon.get("/checkpoints", q=secret).json()["total"] == 0
        with daemon.events() as events:
            snapshot = [next(events) for _ in range(3)]
        answers = [daemon.get(path).text for path in ("/checkpoints", "/api/inference/checkpoints", "/metrics")]
        assert [s for s in SECRETS if s.lower() in f"{detail}{snapshot}{answers}".lower()] == []
        daemon.stop()
    assert holders(state) == []
    assert [secret for secret in SECRETS if secret in daemon.log()] == []
    assert set(holders(outputs)) == theirs, "the sidecar and the index hold none"


@pytest.mark.slow
def test_with_redaction_switched_off_and_on_again_everything_is_described_anew(tmp_path: pathlib.Path) -> None:
    outputs, state = tmp_path / "outputs", tmp_path / "state"
    write_run(outputs)
    for flag, shown in (("no_redact", SECRETS[1]), ("redact", "[redacted]")):
        with Daemon(outputs, state, sidecars="off", **{flag: None}) as daemon:
            (entry,) = eventually(daemon.entries, "the checkpoint is listed").values()

            def password(daemon: Daemon = daemon, entry: dict[str, object] = entry) -> object:
                detail = daemon.get(f"/checkpoints/{entry['id']}").json()
                return detail.get("hyper_parameters", {}).get("db", {}).get("password")

            eventually(lambda password=password, shown=shown: password() == shown, f"the password is {shown}")
            daemon.stop()


def test_a_new_token_ends_the_old_one_and_its_streams_and_the_reader_s_token_only_reads(
    tmp_path: pathlib.Path,
) -> None:
    outputs, state = tmp_path / "outputs", tmp_path / "state"
    outputs.mkdir()
    with TokenDaemon(outputs, state) as daemon:
        old = {"Authorization": f"Bearer {daemon.token}"}
        command = [sys.executable, "-m", "ckptd.daemon.cli", "token", "--read", "--state-dir", str(state)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
        reader = {"Authorization": f"Bearer {printed.stdout.strip()}"}
        assert httpx.get(f"{daemon.url}/checkpoints", headers=reader, timeout=DEADLINE_S).status_code == 200
        assert httpx.post(f"{daemon.url}/rebuild", headers=reader, timeout=DEADLINE_S).status_code == 403
        assert httpx.post(f"{daemon.url}/rebuild", headers=old, timeout=DEADLINE_S).status_code == 202
        with httpx.stream("GET", f"{daemon.url}/checkpoints/events", headers=old, timeout=DEADLINE_S) as stream:
            lines = stream.iter_lines()
            assert any('"complete"' in line for line in lines)
            (state / "token").write_text("a-new-token-of-enough-characters\n")
            daemon.signal(signal.SIGHUP)
            assert any('"bye"' in line and "token was changed" in line for line in lines), "it ended with bye"
        assert httpx.get(f"{daemon.url}/checkpoints", headers=old, timeout=DEADLINE_S).status_code == 401
        assert daemon.get("/checkpoints").status_code == 200, "by the new one"
        assert "a-new-token" not in daemon.log()
        assert old["Authorization"][7:] not in daemon.log()
