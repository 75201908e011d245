"""The real daemon and checkpoints that are directories: each is one checkpoint, live, whole or not at all."""

import os
import pathlib
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckptd.catalog.sidecar import is_ours
from tests.catalog.checkpoint_directories import Files, dcp_files, deepspeed_files, put, size_of, trainer_files
from tests.service.campaigns import differences, tree_facts
from tests.service.checkpoints import checkpoint_bytes
from tests.service.daemons import Daemon, eventually

SETTINGS = {"sidecar_delay_s": 0.1, "quiet_s": 0.2, "sweep_min_s": 0.5, "abandoned_s": 600.0}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests here; each has a directory of its own in its root."""
    top = tmp_path_factory.mktemp("directories")
    (top / "outputs").mkdir()
    (top / "config.yaml").write_text("suffixes: [.ckpt, .pt, .pth, .safetensors]\n")
    with Daemon(top / "outputs", top / "state", config=top / "config.yaml", **SETTINGS) as running:
        running.wait_complete()
        yield running


@pytest.fixture
def run(daemon: Daemon, request: pytest.FixtureRequest) -> pathlib.Path:
    path = daemon.roots[0] / request.node.name.replace("[", "-").strip("]")
    path.mkdir()
    return path


def listed(daemon: Daemon, run: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What is listed in one test's directory, by path relative to it."""
    prefix = run.name + "/"
    return {path.removeprefix(prefix): entry for path, entry in daemon.entries().items() if path.startswith(prefix)}


def wait_for(daemon: Daemon, run: pathlib.Path, name: str, **expected: object) -> dict[str, Any]:
    """Wait until an entry is there with these fields, and return it."""

    def there() -> dict[str, Any] | None:
        entry = listed(daemon, run).get(name)
        return entry if entry and all(entry[field] == value for field, value in expected.items()) else None

    return eventually(there, f"{name} has {expected}; the log: {daemon.log_file}")


def codes(entry: dict[str, Any]) -> set[str]:
    return {found["code"] for found in entry["findings"]}


def test_what_torch_saves_is_one_valid_checkpoint_with_its_metadata_beside_it(
    daemon: Daemon, run: pathlib.Path
) -> None:
    state = {"state_dict": {"weight": torch.ones(4, 6), "bias": torch.zeros(4)}, "epoch": 4, "global_step": 70}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that it was left to itself
        dcp.save(state, checkpoint_id=run / "step-70", no_dist=True)
    names = sorted(os.listdir(run / "step-70"))
    entry = wait_for(daemon, run, "step-70", health="valid", has_metadata=True)
    assert list(listed(daemon, run)) == ["step-70"]
    assert (entry["format"], entry["epoch"], entry["global_step"], entry["n_parameters"]) == ("dcp", 4, 70, 28)
    assert entry["size_bytes"] == sum(path.stat().st_size for path in (run / "step-70").iterdir())
    assert is_ours((run / "step-70.metadata.yaml").read_bytes())
    assert sorted(os.listdir(run / "step-70")) == names
    detail = daemon.get(f"/checkpoints/{entry['id']}").json()
    assert [shard["name"] for shard in detail["shards"]] == names


@pytest.mark.parametrize(
    ("name", "files", "silent"),
    [
        ("step-1", dcp_files(1), 0),
        ("checkpoint-500", trainer_files(), 1),  # config.json alone does not tell what it is going to be
        # Its rank files may be whole without the note that names them.
        ("epoch=3.ckpt", deepspeed_files(), len(deepspeed_files())),
    ],
    ids=["dcp", "transformers", "deepspeed"],
)
def test_file_by_file_it_is_being_written_until_the_last_one(
    daemon: Daemon, run: pathlib.Path, name: str, files: Files, silent: int
) -> None:
    told: list[str] = []
    written: dict[str, bytes] = {}
    with daemon.events(include_invalid="true") as events:
        for number, (part, data) in enumerate(files.items(), start=1):
            put(run / name, {part: data})
            written[part] = data
            if silent < number < len(files):
                wait_for(daemon, run, name, health="writing", size_bytes=size_of(written))
        wait_for(daemon, run, name, health="valid", size_bytes=size_of(files))
        for message in events:
            news = message["checkpoints"] if message["type"] in ("batch", "upsert") else []
            mine = [entry for entry in news if entry["path"].startswith(run.name + "/")]
            assert {entry["path"] for entry in mine} <= {f"{run.name}/{name}"}
            told += [entry["health"] for entry in mine]
            if "valid" in told:
                break
    assert set(told[:-1]) <= {"writing"}


def test_a_rename_to_the_final_name_is_followed(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "step-1.tmp", dcp_files(1))
    before = wait_for(daemon, run, "step-1.tmp", health="valid")
    (run / "step-1.tmp").rename(run / "step-1")
    after = wait_for(daemon, run, "step-1", health="valid")
    eventually(lambda: list(listed(daemon, run)) == ["step-1"], "the old name is gone")
    assert after["content_id"] == before["content_id"]
    eventually(lambda: sorted(os.listdir(run)) == ["step-1", "step-1.metadata.yaml"], "its sidecar moves along")


def test_copies_made_file_by_file_are_valid(daemon: Daemon, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(tmp_path / "source" / "step-1", dcp_files(1))
    put(tmp_path / "source" / "checkpoint-500", trainer_files())
    for options in ("-r", "-rp"):
        subprocess.run(["cp", options, tmp_path / "source", run / f"copy{options}"], check=True)
        for name in ("step-1", "checkpoint-500"):
            wait_for(daemon, run, f"copy{options}/{name}", health="valid")
    assert len(listed(daemon, run)) == 4


def test_an_overwritten_directory_is_described_anew(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "step-1", dcp_files(1))
    first = wait_for(daemon, run, "step-1", health="valid", epoch=1)
    put(run / "step-1", dcp_files(2))
    second = wait_for(daemon, run, "step-1", health="valid", epoch=2)
    assert second["id"] == first["id"]
    assert second["n_parameters"] > first["n_parameters"]
    sidecar = run / "step-1.metadata.yaml"
    eventually(lambda: sidecar.exists() and b"epoch: 2" in sidecar.read_bytes(), "our sidecar follows")


def test_what_never_stands_still_is_being_written_and_is_whole_once_it_does(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "step-1", dcp_files(1))
    wait_for(daemon, run, "step-1", health="valid")
    data = dcp_files(1)["__0_0.distcp"]
    stop = threading.Event()

    def rewrite() -> None:
        with open(run / "step-1" / "__0_0.distcp", "r+b") as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), data, 0)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        wait_for(daemon, run, "step-1", health="writing")
    finally:
        stop.set()
        writer.join()
    wait_for(daemon, run, "step-1", health="valid")


def test_a_deleted_directory_takes_its_sidecar_along(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "checkpoint-500", trainer_files())
    wait_for(daemon, run, "checkpoint-500", has_metadata=True)
    shutil.rmtree(run / "checkpoint-500")
    eventually(lambda: not listed(daemon, run), "it is gone")
    eventually(lambda: not os.listdir(run), "its sidecar is gone")


def test_a_link_to_a_directory_is_an_alias_that_moves_on(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "step-1", dcp_files(1))
    put(run / "step-2", dcp_files(2))
    wait_for(daemon, run, "step-1", health="valid")
    target = wait_for(daemon, run, "step-2", health="valid")
    (run / "newest").symlink_to("step-1")
    alias = wait_for(daemon, run, "newest", health="valid", epoch=1)
    assert alias["alias_of"] == listed(daemon, run)["step-1"]["id"]
    (run / "next").symlink_to("step-2")
    (run / "next").rename(run / "newest")
    wait_for(daemon, run, "newest", epoch=2, alias_of=target["id"])
    shutil.rmtree(run / "step-2")
    eventually(lambda: set(listed(daemon, run)) == {"step-1"}, "a link that leads nowhere is no checkpoint")


def test_files_in_a_directory_are_listed_while_it_is_no_checkpoint(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "step-1", {"inner.ckpt": checkpoint_bytes(1)})
    wait_for(daemon, run, "step-1/inner.ckpt", health="valid", has_metadata=True)
    put(run / "step-1", dcp_files(1))
    wait_for(daemon, run, "step-1", health="valid")
    eventually(lambda: list(listed(daemon, run)) == ["step-1"], "what is in it is listed no more")
    eventually(lambda: not list(run.glob("step-1/*.yaml")), "nor does our sidecar stay in it")
    for name in dcp_files(1):
        (run / "step-1" / name).unlink()
    wait_for(daemon, run, "step-1/inner.ckpt", health="valid")
    eventually(lambda: list(listed(daemon, run)) == ["step-1/inner.ckpt"], "it is a directory like any other again")


def test_the_list_equals_a_build_and_every_directory_is_verified(daemon: Daemon, run: pathlib.Path) -> None:
    put(run / "step-1", dcp_files(3))
    put(run / "checkpoint-7", trainer_files(7))
    wait_for(daemon, run, "step-1", verified="checksum", health="valid")
    wait_for(daemon, run, "checkpoint-7", health="valid")
    daemon.wait_complete()
    tree = {f"{run.name}/{path}": facts for path, facts in tree_facts(run).items()}
    served = {path: entry for path, entry in daemon.entries().items() if path.startswith(run.name + "/")}
    # `archive.unverifiable` is what reading every byte has added.
    ignored = "archive.unverifiable"
    for entry in served.values():
        entry["findings"] = [found for found in entry["findings"] if found["code"] != ignored]
    assert differences(served, tree) == []


@pytest.mark.slow
def test_a_training_by_transformers_is_followed_from_step_to_step(daemon: Daemon, run: pathlib.Path) -> None:
    """The real Trainer, which keeps two checkpoints and deletes the others."""
    subprocess.run([sys.executable, "-c", _TRAINING, run], check=True, capture_output=True)
    for step in (6, 8):
        entry = wait_for(daemon, run, f"checkpoint-{step}", health="valid", format="transformers", global_step=step)
        assert entry["metrics"]["validation_loss"] > 0
    eventually(lambda: set(listed(daemon, run)) == {"checkpoint-6", "checkpoint-8"}, "the others are gone")


_TRAINING = """
import sys, torch, transformers
config = transformers.BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=16, max_position_embeddings=16)
data = [{"input_ids": torch.arange(8), "labels": torch.tensor(i % 2)} for i in range(8)]
arguments = transformers.TrainingArguments(
    output_dir=sys.argv[1], max_steps=8, save_steps=2, eval_strategy="steps", eval_steps=2, save_total_limit=2,
    per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True)
model = transformers.BertForSequenceClassification(config)
transformers.Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data).train()
"""


def test_a_missing_shard_makes_it_invalid_in_time_and_a_restart_reads_nothing_again(tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "outputs"
    put(outputs / "step-1", dcp_files(1))
    put(outputs / "step-2", dcp_files(2))
    daemon = Daemon(outputs, tmp_path / "state", **(SETTINGS | {"abandoned_s": 0.5, "verify": "none"}))
    with daemon:
        eventually(lambda: _healths(daemon) == {"step-1": "valid", "step-2": "valid"}, "both are valid")
        (outputs / "step-1" / "__0_1.distcp").unlink()
        eventually(lambda: _healths(daemon) == {"step-1": "invalid", "step-2": "valid"}, "one is broken")
        assert "shards.incomplete" in codes(daemon.entries()["step-1"])
        daemon.wait_complete()
        assert daemon.stop() == 0
        daemon.start()
        eventually(lambda: daemon.log().count("catalog built: ") == 2, "the build is logged")
        assert "catalog built: 2 entries (2 known, 0 inspected)" in daemon.log()
        assert _healths(daemon) == {"step-1": "invalid", "step-2": "valid"}
        put(outputs / "step-1", dcp_files(1))
        eventually(lambda: _healths(daemon) == {"step-1": "valid", "step-2": "valid"}, "it is mended")


def _healths(daemon: Daemon) -> dict[str, str]:
    return {path: entry["health"] for path, entry in daemon.entries().items()}


def test_a_root_that_is_itself_a_checkpoint_is_refused_at_start(tmp_path: pathlib.Path) -> None:
    root = put(tmp_path / "outputs" / "step-1", dcp_files(1))
    answer = subprocess.run(Daemon(root, tmp_path / "state").command(), capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "is itself a checkpoint (dcp)" in answer.stderr
    assert str(root.parent) in answer.stderr
