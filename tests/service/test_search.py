"""Searches of a real daemon: configs and hyper-parameters of real files, by list and stream."""

import pathlib
import sqlite3

import pytest

from ckptd.catalog.state_file import SCHEMA_VERSION
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    for name, optimizer in (("dbnet", "AdamW"), ("craft", "SGD")):
        rename_in(path / name / "checkpoints/last.ckpt", checkpoint_bytes(len(name)))
        (path / name / ".hydra").mkdir()
        (path / name / ".hydra/config.yaml").write_text(f"optimizer:\n  name: {optimizer}\n  lr: 1.0e-3\n")
    return path


@pytest.fixture
def daemon(tmp_path: pathlib.Path, outputs: pathlib.Path) -> Daemon:
    return Daemon(outputs, tmp_path / "state", sidecars="off")


def found(daemon: Daemon, q: str) -> set[str]:
    """The experiments that a search finds."""
    return {entry["exp_name"] for entry in daemon.get("/checkpoints", q=q).json()["checkpoints"]}


def test_hyper_parameters_and_configs_are_found_by_list_and_stream_and_after_a_restart(
    daemon: Daemon, outputs: pathlib.Path
) -> None:
    with daemon:
        daemon.wait_complete()
        assert found(daemon, "optimizer.name:adamw") == {"dbnet"}
        assert found(daemon, "lr:0.1 lr:0.001") == {"dbnet", "craft"}, "of the checkpoint, and of the config beside it"
        assert found(daemon, "seed:5 -sgd") == {"dbnet"}
        assert daemon.health()["search"] == "full"
        with daemon.events(q="optimizer.name:sgd") as events:
            snapshot = next(message for message in events if message["type"] == "batch")
            assert [entry["exp_name"] for entry in snapshot["checkpoints"]] == ["craft"]
            assert next(message for message in events if message["type"] == "complete")["total"] == 1
            (outputs / "dbnet/.hydra/config.yaml").write_text("optimizer:\n  name: SGD\n")
            rename_in(outputs / "dbnet/checkpoints/last.ckpt", checkpoint_bytes(9))
            told = next(message for message in events if message["type"] == "upsert")
            assert [entry["exp_name"] for entry in told["checkpoints"]] == ["dbnet"]
        assert found(daemon, "optimizer.name:sgd") == {"dbnet", "craft"}
        daemon.stop()
        daemon.start()
        assert found(daemon, "optimizer.name:sgd") == {"dbnet", "craft"}
        assert found(daemon, "optimizer.name:adamw") == set()


def downgrade(path: pathlib.Path) -> None:
    """The state as the version before searches left it."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "DROP INDEX entries_by_text; ALTER TABLE entries DROP COLUMN text_key; DROP TABLE texts_index;"
            "DROP TABLE texts; DELETE FROM meta WHERE key = 'user:judged_by';"
            f"PRAGMA user_version = {SCHEMA_VERSION - 1};"
        )
    connection.close()


def test_a_state_of_the_schema_before_is_searched_once_everything_is_described_again(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # A background verification would be one more change of each.
    with Daemon(outputs, tmp_path / "state", sidecars="off", verify="none") as daemon:
        daemon.wait_complete()
        revision = daemon.health()["revision"]
        daemon.stop()
        downgrade(tmp_path / "state/state.sqlite3")
        daemon.start()
        eventually(lambda: found(daemon, "optimizer.name:adamw") == {"dbnet"}, "configs are searched")
        eventually(lambda: daemon.health()["search"] == "full", "health says so")
        assert daemon.health()["revision"] == revision + 2, "each of them changed: it can be found now"
