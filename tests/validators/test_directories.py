"""Checkpoints that are directories: described like files, valid only when whole, and every damage to them found."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_loader import load as load_dcp

from ckptd.validators import Format, Inspection, Level, Safety, Seal, inspect_checkpoint
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.formats.sharded import (
    Part,
    claim,
    directory_identity,
    is_member_name,
    shards_digest,
    wants,
)
from ckptd.validators.inspector import inspect_directory
from ckptd.validators.reader import identity_of
from ckptd.validators.sharded.crc import combine
from tests.validators.checkpoint_files import codes, saved
from tests.validators.directory_files import (
    WRITERS,
    copy_of,
    files_in,
    flip,
    grow,
    inspect_if_claimed,
    model,
    put,
    save_dcp,
    save_deepspeed,
    save_fsdp,
    save_lightning_deepspeed,
    trained,
    training_state,
)
from tests.validators.hostile import KILLERS, hostile_pickles

TRANSFORMERS = ("transformers", "transformers_sharded")
EVERY = (*WRITERS, *TRANSFORMERS)
WITH_CHECKSUMS = ("dcp", "dcp_two_shards", "dcp_async", "fsdp", "deepspeed", "deepspeed_stage_3", "deepspeed_lightning")


@pytest.fixture(scope="module")
def trainer_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the transformers Trainer with two checkpoints, on a model made from a configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        config = transformers.BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
        torch.manual_seed(5)
        bert = transformers.BertForSequenceClassification(config)
        data = [{"input_ids": torch.arange(8), "labels": torch.tensor(i % 2)} for i in range(8)]
        directory = str(tmp_path_factory.mktemp("run"))
        arguments = transformers.TrainingArguments(
            output_dir=directory,
            max_steps=4,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            logging_steps=1,
            per_device_train_batch_size=2,
            metric_for_best_model="loss",
            load_best_model_at_end=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model=bert, args=arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        sharded = os.path.join(directory, "sharded", "checkpoint-4")
        shutil.copytree(os.path.join(directory, "checkpoint-4"), sharded)
        os.remove(os.path.join(sharded, "model.safetensors"))
        trainer.model.save_pretrained(sharded, max_shard_size="5KB")
        shutil.copyfile(
            os.path.join(directory, "checkpoint-4", "trainer_state.json"), os.path.join(sharded, "trainer_state.json")
        )
    return directory


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Kind → a directory of it, once it has been written: torch waits for the disk at each save."""
    return {"": str(tmp_path_factory.mktemp("originals"))}


@pytest.fixture
def written(
    tmp_path: os.PathLike[str], originals: dict[str, str], request: pytest.FixtureRequest
) -> Callable[[str], str]:
    """Gives a checkpoint directory of a kind, all to the test, with the times at which its files were written."""

    def write(kind: str) -> str:
        if kind in TRANSFORMERS:
            run = request.getfixturevalue("trainer_run")
            originals[kind] = os.path.join(
                run if kind == "transformers" else os.path.join(run, "sharded"), "checkpoint-4"
            )
        elif kind not in originals:
            name, _, writer = WRITERS[kind]
            originals[kind] = os.path.join(originals[""], kind, name)
            os.makedirs(os.path.dirname(originals[kind]))
            writer(originals[kind])
        target = os.path.join(tmp_path, "written", kind, os.path.basename(originals[kind]))
        os.makedirs(os.path.dirname(target))
        return copy_of(originals[kind], target)

    return write


def format_of(kind: str) -> Format:
    return Format.TRANSFORMERS if kind in TRANSFORMERS else WRITERS[kind][1]


def parts_of(directory: str, *, opened: Callable[[str], bool] = lambda name: True) -> list[Part]:
    """The files of a directory, as the daemon hands them to a worker; the caller closes them."""
    parts = []
    for name in files_in(directory):
        path = os.path.join(directory, name)
        fd = os.open(path, os.O_RDONLY) if opened(name) else None
        parts.append(Part(name, identity_of(os.stat(path)), fd))
    return parts


def inspect_parts(directory: str, parts: list[Part], level: Level = Level.STRUCTURE) -> Inspection:
    try:
        return inspect_directory(parts, identity_of(os.stat(directory)), directory, level)
    finally:
        for part in parts:
            if part.fd is not None:
                os.close(part.fd)


# ---- whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("level", [Level.STRUCTURE, Level.CHECKSUM, Level.WEIGHTS])
def test_a_whole_directory_is_valid_at_every_level(kind: str, level: Level, written: Callable[[str], str]) -> None:
    path = written(kind)
    inspection = inspect_checkpoint(path, level)
    assert inspection.is_valid, inspection.findings
    assert inspection.format is format_of(kind)
    assert inspection.seal is Seal.SEALED
    assert [shard.name for shard in inspection.shards] == files_in(path)
    assert inspection.identity.size == sum(shard.size_bytes for shard in inspection.shards)
    assert (inspection.digest is None) == (level is Level.STRUCTURE)
    if level is Level.WEIGHTS:
        assert inspection.level is Level.WEIGHTS
    else:
        assert inspection.level is (level if kind in WITH_CHECKSUMS else Level.STRUCTURE)
    msgspec.json.encode(inspection)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(inspection), type=Inspection) == inspection


def test_a_dcp_directory_is_described_as_torch_reports_it(tmp_path: os.PathLike[str]) -> None:
    state = training_state()
    path = os.path.join(tmp_path, "step-1")
    save_dcp(path, state)
    inspection = inspect_checkpoint(path)
    metadata = dcp.FileSystemReader(path).read_metadata()
    stored = {
        name: (str(entry.properties.dtype).removeprefix("torch."), tuple(entry.size))
        for name, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in inspection.tensors} == stored
    loaded = {"state_dict": {name: torch.zeros_like(value) for name, value in state["state_dict"].items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        load_dcp(loaded, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    for name, value in loaded["state_dict"].items():
        assert torch.equal(value, state["state_dict"][name])
    assert inspection.n_parameters == sum(value.numel() for value in loaded["state_dict"].values())
    assert inspection.weights_bytes == sum(value.nbytes for value in loaded["state_dict"].values())
    assert (inspection.epoch, inspection.global_step) == (3, 120)
    assert inspection.safety is Safety.SAFE
    optimizer_tensors = [t for per in state["optimizer"]["state"].values() for t in per.values()]
    assert inspection.optimizer_bytes == sum(tensor.nbytes for tensor in optimizer_tensors)
    assert {tensor.role for tensor in inspection.tensors} == {"weights", "optimizer"}


def test_hyper_parameters_and_numbers_of_a_dcp_are_read_from_their_extents(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "step-1")
    state = {
        "model": dict(model().state_dict()),
        "epoch": torch.tensor(7),
        "step": 9,
        "hparams": {"lr": 0.1, "layers": [1, 2, {"a": "b"}]},
        "metrics": {"val_loss": torch.tensor(0.5)},
    }
    save_dcp(path, state)
    inspection = inspect_checkpoint(path)
    assert (inspection.epoch, inspection.global_step) == (7, 9)
    assert inspection.hyper_parameters == {"lr": 0.1, "layers": [1, 2, {"a": "b"}]}
    assert inspection.metrics == {"val_loss": 0.5}


def test_a_value_that_holds_tensors_is_no_problem(tmp_path: os.PathLike[str]) -> None:
    class Holder:
        def __init__(self) -> None:
            self.tensor = torch.ones(3)

    globals()["Holder"] = Holder
    Holder.__qualname__ = "Holder"
    path = os.path.join(tmp_path, "step-1")
    save_dcp(path, {"model": dict(model().state_dict()), "extra": Holder()})
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    assert inspection.unsafe_globals == (f"{__name__}.Holder",)
    assert inspection.safety is Safety.UNKNOWN
    assert "extra.tensor" in {tensor.name for tensor in inspection.tensors}


def test_the_same_weights_have_one_content_id_in_a_file_and_in_every_directory(
    tmp_path: os.PathLike[str], written: Callable[[str], str]
) -> None:
    made, _ = trained()
    with open(os.path.join(tmp_path, "a.ckpt"), "wb") as file:
        file.write(saved({"state_dict": made.state_dict()}))
    wanted = inspect_checkpoint(os.path.join(tmp_path, "a.ckpt")).content_id
    assert wanted is not None
    for kind in ("dcp", "dcp_two_shards", "dcp_async", "fsdp", "deepspeed", "deepspeed_lightning"):
        assert inspect_checkpoint(written(kind)).content_id == wanted, kind
    for kind in ("dcp_safetensors", "deepspeed_stage_3", "transformers"):
        assert inspect_checkpoint(written(kind)).content_id is None, kind


def test_lightnings_facts_come_from_meta(written: Callable[[str], str]) -> None:
    inspection = inspect_checkpoint(written("fsdp"))
    assert (inspection.epoch, inspection.global_step, inspection.lightning_version) == (2, 40, "2.6.1")
    assert inspection.hyper_parameters == {"learning_rate": 0.001, "architecture": "tiny"}
    assert inspection.callbacks[0].best_model_score == 0.25
    assert inspection.n_parameters == sum(tensor.numel() for tensor in model().state_dict().values())
    assert inspection.optimizer_bytes


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("model_parallel", [1, 2])
def test_deepspeed_is_described_whatever_is_partitioned(
    stage: int, model_parallel: int, tmp_path: os.PathLike[str]
) -> None:
    path = os.path.join(tmp_path, "global_step40")
    save_deepspeed(path, stage=stage, data_parallel=3, model_parallel=model_parallel)
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid, inspection.findings
    assert inspection.seal is Seal.SEALED
    assert inspection.n_parameters == model_parallel * sum(tensor.numel() for tensor in model().state_dict().values())
    assert (inspection.epoch, inspection.global_step) == (2, 40)
    assert inspection.hyper_parameters is not None
    assert inspection.hyper_parameters["ds_config"]["zero_optimization"] == {"stage": stage}
    assert inspection.optimizer_bytes


def test_a_pipelines_layers_are_its_weights(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "global_step5")
    save_deepspeed(path, stage=0, data_parallel=1)
    top = torch.load(os.path.join(path, "mp_rank_00_model_states.pt"), weights_only=True)
    torch.save(top | {"module": None}, os.path.join(path, "mp_rank_00_model_states.pt"))
    for layer in (0, 2):
        torch.save({"weight": torch.ones(3, 2)}, os.path.join(path, f"layer_{layer:02d}-model_00-model_states.pt"))
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid, inspection.findings
    assert inspection.n_parameters == 12
    names = {tensor.name for tensor in inspection.tensors if tensor.role == "weights"}
    assert names == {"layer_00-model_00.weight", "layer_02-model_00.weight"}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_trainers_checkpoint_is_described_as_transformers_reports_it(
    kind: str, written: Callable[[str], str]
) -> None:
    import transformers

    path = written(kind)
    inspection = inspect_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = transformers.BertForSequenceClassification.from_pretrained(path)
    weights = {t.name: (t.dtype, t.shape) for t in inspection.tensors if t.role == "weights"}
    state = loaded.state_dict()
    assert weights == {
        name: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for name, value in state.items()
    }
    assert inspection.n_parameters == sum(value.numel() for value in state.values())
    optimizer = torch.load(os.path.join(path, "optimizer.pt"), weights_only=True)
    assert inspection.optimizer_bytes == sum(t.nbytes for per in optimizer["state"].values() for t in per.values())
    with open(os.path.join(path, "trainer_state.json"), "rb") as file:
        trainer_state = json.load(file)
    assert (inspection.epoch, inspection.global_step) == (1, 4)
    assert inspection.metrics["eval_loss"] == trainer_state["log_history"][-1]["eval_loss"]
    assert not any("runtime" in name or "per_second" in name for name in inspection.metrics)
    assert inspection.hyper_parameters is not None
    assert inspection.hyper_parameters["architectures"] == ["BertForSequenceClassification"]
    keeper = inspection.callbacks[0]
    assert (keeper.monitor, keeper.mode) == ("eval_loss", "min")
    assert keeper.best_model_score == trainer_state["best_metric"]


def test_every_pickle_of_a_trainers_checkpoint_counts_for_safety(written: Callable[[str], str]) -> None:
    path = written("transformers")
    inspection = inspect_checkpoint(path)
    assert inspection.safety is Safety.UNKNOWN
    assert inspection.weights_only is False
    assert "transformers.training_args.TrainingArguments" in inspection.unsafe_globals

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, ("true",))

    torch.save({"a": Evil()}, os.path.join(path, "scheduler.pt"))
    inspection = inspect_checkpoint(path)
    assert inspection.safety is Safety.UNSAFE
    assert inspection.is_valid  # it can be loaded; a person should look
    assert any(
        f.code == "pickle.dangerous_name" and f.message.startswith("scheduler.pt: ") for f in inspection.findings
    )


def test_sharded_pickles_of_weights_are_one_state_dict(tmp_path: os.PathLike[str], trainer_run: str) -> None:
    """`pytorch_model-0000x-of-….bin`, as transformers wrote them before version 5."""
    path = copy_of(os.path.join(trainer_run, "checkpoint-4"), os.path.join(tmp_path, "checkpoint-4"))
    os.remove(os.path.join(path, "model.safetensors"))
    state = {f"encoder.layer.{i}.weight": torch.full((2, i + 1), float(i)) for i in range(4)}
    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:2], "pytorch_model-00002-of-00002.bin": names[2:]}
    for shard, inside in shards.items():
        torch.save({name: state[name] for name in inside}, os.path.join(path, shard))
    mapped = {name: shard for shard, inside in shards.items() for name in inside}
    put(path, "pytorch_model.bin.index.json", json.dumps({"metadata": {}, "weight_map": mapped}).encode())
    os.utime(os.path.join(path, "trainer_state.json"))
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    assert inspection.level is Level.CHECKSUM
    assert [t.name for t in inspection.tensors if t.role == "weights"] == names
    whole = put(str(tmp_path), "whole.ckpt", saved({"state_dict": state}))
    assert inspection.content_id == inspect_checkpoint(whole).content_id


def test_an_adapters_checkpoint_needs_no_whole_model(tmp_path: os.PathLike[str], trainer_run: str) -> None:
    path = copy_of(os.path.join(trainer_run, "checkpoint-4"), os.path.join(tmp_path, "checkpoint-4"))
    os.rename(os.path.join(path, "model.safetensors"), os.path.join(path, "adapter_model.safetensors"))
    os.rename(os.path.join(path, "config.json"), os.path.join(path, "adapter_config.json"))
    assert inspect_checkpoint(path).is_valid


def test_fsdp_inside_a_trainers_checkpoint_is_read_as_its_weights(tmp_path: os.PathLike[str], trainer_run: str) -> None:
    """accelerate/utils/fsdp_utils.py, `save_fsdp_model` and `save_fsdp_optimizer` with sharded state dicts."""
    path = copy_of(os.path.join(trainer_run, "checkpoint-4"), os.path.join(tmp_path, "checkpoint-4"))
    os.remove(os.path.join(path, "model.safetensors"))
    os.remove(os.path.join(path, "optimizer.pt"))
    made, optimizer = trained()
    save_dcp(os.path.join(path, "pytorch_model_fsdp_0"), {"model": made.state_dict()})
    save_dcp(os.path.join(path, "optimizer_0"), {"optimizer": optimizer.state_dict()})
    os.utime(os.path.join(path, "trainer_state.json"))
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    assert inspection.seal is Seal.SEALED
    assert inspection.level is Level.CHECKSUM
    assert inspection.n_parameters == sum(value.numel() for value in made.state_dict().values())
    assert inspection.optimizer_bytes == sum(
        t.nbytes for per in optimizer.state_dict()["state"].values() for t in per.values()
    )
    os.remove(os.path.join(path, "optimizer_0", "__0_0.distcp"))
    inspection = inspect_checkpoint(path)
    assert inspection.seal is Seal.OPEN
    assert any("optimizer_0/__0_0.distcp" in found.message for found in inspection.findings)


def test_accelerates_own_directories_end_by_quiet_time(tmp_path: os.PathLike[str], trainer_run: str) -> None:
    """`Accelerator.save_state` writes no trainer's state, so nothing says that it has ended."""
    path = os.path.join(tmp_path, "checkpoint-500")
    os.makedirs(path)
    shutil.copy(os.path.join(trainer_run, "checkpoint-4", "model.safetensors"), path)
    shutil.copy(os.path.join(trainer_run, "checkpoint-4", "optimizer.pt"), os.path.join(path, "optimizer.bin"))
    shutil.copy(os.path.join(trainer_run, "checkpoint-4", "rng_state.pth"), os.path.join(path, "random_states_0.pkl"))
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid, inspection.findings
    assert inspection.seal is Seal.NONE


# ---- growing, copied -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_a_growing_directory_is_never_valid_before_its_last_byte(
    kind: str, written: Callable[[str], str], tmp_path: os.PathLike[str]
) -> None:
    source = written(kind)
    target = os.path.join(tmp_path, "growing", os.path.basename(source))
    os.makedirs(os.path.dirname(target))
    claimed_at: list[int] = []

    def seen(step: int, last: int) -> None:
        inspection = inspect_if_claimed(target)
        if inspection is None:
            assert not claimed_at, "a directory was given up after it had been claimed"
            return
        claimed_at.append(step)
        if step < last:
            assert not inspection.is_valid or inspection.seal is not Seal.SEALED, (step, last, inspection)
        else:
            assert inspection.is_valid, inspection.findings

    grow(source, target, seen)
    assert claimed_at


def test_dcps_last_step_is_the_rename_of_the_metadata(written: Callable[[str], str]) -> None:
    path = written("dcp")
    os.rename(os.path.join(path, ".metadata"), os.path.join(path, ".metadata.tmp"))
    inspection = inspect_checkpoint(path)
    assert inspection.seal is Seal.OPEN
    assert codes(inspection) == {"shards.incomplete"}
    save_dcp(path)
    put(path, ".metadata.tmp", b"")
    assert inspect_checkpoint(path).seal is Seal.OPEN
    os.remove(os.path.join(path, ".metadata.tmp"))
    assert inspect_checkpoint(path).seal is Seal.SEALED


def test_new_shards_beside_old_metadata_are_told_by_their_time(written: Callable[[str], str]) -> None:
    path = written("dcp")
    later = os.stat(os.path.join(path, ".metadata")).st_mtime_ns + 1
    os.utime(os.path.join(path, "__0_0.distcp"), ns=(later, later))
    inspection = inspect_checkpoint(path)
    assert codes(inspection) == {"shards.order"}
    assert inspection.is_valid
    assert inspection.seal is Seal.NONE


def test_lightnings_fsdp_is_not_whole_without_meta(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "epoch=2.ckpt")
    save_fsdp(path)
    os.remove(os.path.join(path, "meta.pt"))
    inspection = inspect_checkpoint(path)
    assert inspection.seal is Seal.OPEN
    assert "shards.incomplete" in codes(inspection)


def test_a_plain_dcp_of_a_model_needs_no_meta(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "step-1")
    save_dcp(path, {"model": model().state_dict()})
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid
    assert inspection.seal is Seal.SEALED
    os.rename(path, os.path.join(tmp_path, "epoch=1.ckpt"))
    inspection = inspect_checkpoint(os.path.join(tmp_path, "epoch=1.ckpt"))
    assert inspection.is_valid
    assert inspection.seal is Seal.NONE  # Lightning's, saved with save_weights_only, or somebody else's


def test_latest_must_name_a_tag_that_is_there(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "epoch=2.ckpt")
    save_lightning_deepspeed(path)
    put(path, "latest", b"global_step7\n")
    inspection = inspect_checkpoint(path)
    assert inspection.seal is Seal.OPEN
    assert any("global_step7" in found.message for found in inspection.findings)
    put(path, "latest", b"../checkpoint")
    assert inspect_checkpoint(path).seal is Seal.OPEN


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "tool", ["cp -r", "cp -rp", "tar", *(["rsync -r", "rsync -a"] if shutil.which("rsync") else [])]
)
def test_copies_stay_valid(kind: str, tool: str, written: Callable[[str], str], tmp_path: os.PathLike[str]) -> None:
    """Whatever order and times the tool leaves behind."""
    source = written(kind)
    target = os.path.join(tmp_path, "copies", os.path.basename(source))
    os.makedirs(os.path.dirname(target))
    if tool == "tar":
        packed = os.path.join(tmp_path, "packed.tar")
        with tarfile.open(packed, "w") as archive:
            archive.add(source, os.path.basename(source))
        with tarfile.open(packed) as archive:
            archive.extractall(os.path.dirname(target), filter="data")
    else:
        program, option = tool.split()
        subprocess.run([program, option, source + ("/" if program == "rsync" else ""), target], check=True)
    inspection = inspect_checkpoint(target, Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    assert inspection.seal in (Seal.SEALED, Seal.NONE)
    assert inspection.content_id == inspect_checkpoint(source).content_id
    assert inspection.archive_id == inspect_checkpoint(source).archive_id
    assert inspection.digest == inspect_checkpoint(source, Level.CHECKSUM).digest


def test_two_saves_of_one_model_have_different_archive_ids(
    written: Callable[[str], str], trainer_run: str, tmp_path: os.PathLike[str]
) -> None:
    """Also where no size differs."""
    epochs = [os.path.join(tmp_path, "deepspeed", str(number), "global_step40") for number in range(2)]
    for epoch, path in enumerate(epochs):
        save_deepspeed(path)
        name = os.path.join(path, "mp_rank_00_model_states.pt")
        top = torch.load(name, weights_only=True)
        top["module"]["0.weight"] += epoch
        torch.save(top, name)
    assert len({inspect_checkpoint(path).archive_id for path in epochs}) == 2
    epochs = [os.path.join(tmp_path, "dcp", str(number)) for number in range(2)]
    for epoch, path in enumerate(epochs):
        save_dcp(path, {"state_dict": {"w": torch.full((4096,), float(epoch))}})
        metadata = dcp.FileSystemReader(path).read_metadata()
        metadata.storage_meta = None  # as before torch 2.4: the metadata of all epochs are equal
        put(path, ".metadata", pickle.dumps(metadata))
    assert len({inspect_checkpoint(path).archive_id for path in epochs}) == 2
    fsdp = written("fsdp")
    before = inspect_checkpoint(fsdp).archive_id
    meta = torch.load(os.path.join(fsdp, "meta.pt"), weights_only=True)
    torch.save(meta | {"epoch": 3}, os.path.join(fsdp, "meta.pt"))
    assert inspect_checkpoint(fsdp).archive_id != before
    first, second = (os.path.join(trainer_run, f"checkpoint-{step}") for step in (2, 4))
    assert inspect_checkpoint(first).archive_id != inspect_checkpoint(second).archive_id


# ---- damaged ---------------------------------------------------------------------------------------------------


def needed_files(path: str) -> list[str]:
    """Files without which a checkpoint is not whole."""
    optional = ("zero_to_fp32.py", "config.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    return [name for name in files_in(path) if os.path.basename(name) not in optional]


@pytest.mark.parametrize("kind", EVERY)
def test_every_missing_file_is_missed(kind: str, written: Callable[[str], str], tmp_path: os.PathLike[str]) -> None:
    source = written(kind)
    for index, name in enumerate(needed_files(source)):
        path = copy_of(source, os.path.join(tmp_path, str(index), os.path.basename(source)))
        os.remove(os.path.join(path, name))
        inspection = inspect_if_claimed(path)
        if inspection is None:
            assert (kind, name) in {("transformers", "model.safetensors")}
            continue
        assert not inspection.is_valid, name
        assert inspection.seal is Seal.OPEN, name
        assert "shards.incomplete" in codes(inspection), name


@pytest.mark.parametrize("kind", EVERY)
def test_every_truncated_file_is_found_at_structure(
    kind: str, written: Callable[[str], str], tmp_path: os.PathLike[str]
) -> None:
    source = written(kind)
    for index, name in enumerate(files_in(source)):
        size = os.path.getsize(os.path.join(source, name))
        if name == "zero_to_fp32.py":
            continue
        for left in (size - 1, size // 2, 1):
            path = copy_of(source, os.path.join(tmp_path, f"{index} {left}", os.path.basename(source)))
            os.truncate(os.path.join(path, name), left)
            if name.endswith(".json") and left == size - 1:
                continue  # the line break at the end
            inspection = inspect_checkpoint(path)
            assert not inspection.is_valid, (name, left)


def records_of(path: str, name: str) -> list[int]:
    """Where the middle byte of each record lies, in the archive that a file is or in those that a shard holds."""
    with open(os.path.join(path, name), "rb") as file:
        data = file.read()
    begins = [(0, len(data))]
    if name.endswith(".distcp"):
        infos = dcp.FileSystemReader(path).read_metadata().storage_data.values()
        begins = [(info.offset, info.length) for info in infos if info.relative_path == name]
    found = []
    for begin, length in begins:
        with zipfile.ZipFile(io.BytesIO(data[begin : begin + length])) as archive:
            for info in archive.infolist():
                header = begin + info.header_offset
                names = int.from_bytes(data[header + 26 : header + 28], "little")
                extra = int.from_bytes(data[header + 28 : header + 30], "little")
                found += [header + 30 + names + extra + info.file_size // 2] if info.file_size else []
    return found


@pytest.mark.parametrize("kind", WITH_CHECKSUMS)
def test_every_flipped_byte_in_a_record_is_found_at_checksum(kind: str, written: Callable[[str], str]) -> None:
    path = written(kind)
    for name in files_in(path):
        places = records_of(path, name) if name.endswith((".distcp", ".pt")) else []
        for place in random.Random(7).sample(places, min(8, len(places))):
            flip(os.path.join(path, name), place)
            inspection = inspect_checkpoint(path, Level.CHECKSUM)
            assert not inspection.is_valid, (name, place)
            assert any(found.code.startswith(("archive.", "pickle.")) for found in inspection.findings)
            flip(os.path.join(path, name), place)
    assert inspect_checkpoint(path, Level.CHECKSUM).is_valid


def test_a_flipped_weight_in_a_shard_is_named(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "step-1")
    weights = {"encoder.weight": torch.full((64, 64), 1.5), "head.weight": torch.full((64, 64), 2.5)}
    save_dcp(path, {"state_dict": weights})
    shard = os.path.join(path, "__0_0.distcp")
    with open(shard, "rb") as file:
        place = file.read().index(torch.full((8,), 2.5).numpy().tobytes())
    flip(shard, place + 100)
    os.utime(os.path.join(path, ".metadata"))
    assert inspect_checkpoint(path).is_valid
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert codes(inspection) == {"archive.checksum_mismatch"}
    assert "__0_0.distcp: state_dict.head.weight: " in (inspection.error_message or "")


def test_a_shard_that_ends_too_early_names_what_is_lost(written: Callable[[str], str]) -> None:
    path = written("dcp")
    shard = os.path.join(path, "__0_0.distcp")
    times = os.stat(shard)
    os.truncate(shard, os.path.getsize(shard) - 10)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    inspection = inspect_checkpoint(path)
    assert codes(inspection) == {"archive.truncated"}
    assert inspection.seal is Seal.SEALED  # it will never be whole


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("content", [b"", b"<html><body>404</body></html>", b"\x1f\x8b\x08\0\0", bytes(4096)])
def test_something_else_under_a_files_name_is_found(
    kind: str, content: bytes, written: Callable[[str], str], tmp_path: os.PathLike[str]
) -> None:
    source = written(kind)
    for index, name in enumerate(files_in(source)):
        if name == "zero_to_fp32.py":
            continue
        path = copy_of(source, os.path.join(tmp_path, str(index), os.path.basename(source)))
        put(path, name, content)
        inspection = inspect_checkpoint(path)
        assert not inspection.is_valid, name
        msgspec.json.encode(inspection)


def test_shards_of_another_save_do_not_fit(tmp_path: os.PathLike[str]) -> None:
    """Other shapes at the same places."""
    path, other = os.path.join(tmp_path, "a"), os.path.join(tmp_path, "b")
    save_dcp(path, {"state_dict": {"w": torch.ones(3, 4), "v": torch.ones(5)}})
    save_dcp(other, {"state_dict": {"w": torch.ones(4, 3), "v": torch.ones(5)}})
    times = os.stat(os.path.join(path, "__0_0.distcp"))
    shutil.copy(os.path.join(other, "__0_0.distcp"), path)
    os.utime(os.path.join(path, "__0_0.distcp"), ns=(times.st_atime_ns, times.st_mtime_ns))
    inspection = inspect_checkpoint(path)
    assert codes(inspection) == {"tensor.out_of_bounds"}
    assert "state_dict.w" in (inspection.error_message or "")


def test_tensors_that_the_index_promises_must_be_in_their_shards(written: Callable[[str], str]) -> None:
    path = written("transformers_sharded")
    shards = sorted(name for name in files_in(path) if name.startswith("model-"))
    shutil.copy(os.path.join(path, shards[0]), os.path.join(path, shards[1]))
    inspection = inspect_checkpoint(path)
    assert "tensor.missing_storage" in codes(inspection)
    assert shards[1] in (inspection.error_message or "")


def test_values_that_are_no_numbers_are_found_in_shards(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "step-1")
    weights = {"good": torch.ones(4, 4), "bad": torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])}
    save_dcp(path, {"state_dict": weights})
    inspection = inspect_checkpoint(path, Level.WEIGHTS)
    assert codes(inspection) == {"weights.non_finite"}
    assert "state_dict.bad" in (inspection.error_message or "")
    assert "[1, 0]" in (inspection.error_message or "")


# ---- hostile ---------------------------------------------------------------------------------------------------


def fully_qualified(**entries: Any) -> bytes:
    """A `.metadata` with some of its fields replaced, pickled by torch's own classes."""
    from torch.distributed.checkpoint.metadata import Metadata

    return pickle.dumps(Metadata(**({"state_dict_metadata": {}, "planner_data": {}, "storage_data": {}} | entries)))


class _Watch:
    """What the process is asked to run; a hook for that cannot be taken out again, so there is one."""

    def __init__(self) -> None:
        self.armed = False
        self.ran: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in ("os.system", "subprocess.Popen", "exec", "import"):
            self.ran.append(event)


def test_hostile_metadata_is_only_a_finding(written: Callable[[str], str]) -> None:
    """Parsed inertly; those that kill any process that parses them are met in the worker pool's tests."""
    path = written("dcp")
    watch = _Watch()
    inspect_checkpoint(path)  # whatever is imported lazily is by now
    for name, data in hostile_pickles().items():
        if name in KILLERS:
            continue
        put(path, ".metadata", data)
        watch.armed = True
        inspection = inspect_checkpoint(path, Level.CHECKSUM)
        watch.armed = False
        assert not watch.ran, name
        assert not inspection.is_valid, name
        assert inspection.safety is not Safety.SAFE, name
        msgspec.json.encode(inspection)


@pytest.mark.parametrize(
    "entries",
    [
        {"state_dict_metadata": None},
        {"state_dict_metadata": {1: 2}},
        {"state_dict_metadata": {"a": 2}},
        {"storage_data": None},
        {"storage_data": {"a": 1}},
        {"planner_data": {"a": ("a",) * 1000}},
    ],
)
def test_metadata_that_says_nonsense_is_only_a_finding(entries: dict[str, Any], written: Callable[[str], str]) -> None:
    path = written("dcp")
    put(path, ".metadata", fully_qualified(**entries))
    inspection = inspect_checkpoint(path)
    assert not inspection.is_valid
    assert inspection.safety in (Safety.SAFE, Safety.UNKNOWN)


def test_metadata_that_points_out_of_the_directory_reads_nothing_there(
    tmp_path: os.PathLike[str], written: Callable[[str], str]
) -> None:
    path = written("dcp")
    metadata = dcp.FileSystemReader(path).read_metadata()
    put(str(tmp_path), "secret", b"secret" * 10_000)
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"
    put(path, ".metadata", pickle.dumps(metadata))
    inspection = inspect_checkpoint(path)
    assert inspection.seal is Seal.OPEN
    assert "../secret" in (inspection.error_message or "")


def test_metadata_with_astronomic_sizes_costs_nothing(written: Callable[[str], str]) -> None:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    path = written("dcp")
    huge = torch.Size((2**31, 2**20))
    entry = TensorStorageMetadata(TensorProperties(), huge, [ChunkStorageMetadata(torch.Size((0, 0)), huge)])
    place = {MetadataIndex("w", torch.Size((0, 0))): _StorageInfo("__0_0.distcp", 0, 2**40)}
    put(path, ".metadata", fully_qualified(state_dict_metadata={"w": entry}, storage_data=place))
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert "archive.truncated" in codes(inspection)


def _mutated(random_: random.Random, data: bytes) -> bytes:
    mutant = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 5))):
        place = random_.randrange(len(mutant))
        match random_.randrange(4):
            case 0:
                mutant[place] ^= 1 << random_.randrange(8)
            case 1:
                mutant[place] = random_.randrange(256)
            case 2 if len(mutant) > 100:
                del mutant[place : place + random_.randrange(1, 20)]
            case _:
                mutant[place:place] = mutant[max(0, place - 30) : place]
    return bytes(mutant)


@pytest.mark.parametrize("kind", ["dcp_two_shards", "fsdp", "deepspeed_lightning", "transformers_sharded"])
def test_no_mutant_of_a_directorys_files_is_more_than_a_finding(kind: str, written: Callable[[str], str]) -> None:
    """Neither an exception nor an answer that cannot be sent; the long campaign is that of the files' own formats."""
    path = written(kind)
    random_ = random.Random(11)
    documents = [name for name in files_in(path) if name.endswith((".metadata", ".json", "latest"))]
    for number in range(40):
        name = random_.choice(documents if number % 2 else files_in(path))
        with open(os.path.join(path, name), "rb") as file:
            data = file.read()
        put(path, name, _mutated(random_, data))
        inspection = inspect_if_claimed(path, Level.CHECKSUM)
        assert inspection is not None
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(inspection), type=Inspection) == inspection
        put(path, name, data)


def test_links_inside_a_directory_are_not_followed(tmp_path: os.PathLike[str], written: Callable[[str], str]) -> None:
    path = written("dcp")
    os.rename(os.path.join(path, "__0_0.distcp"), os.path.join(tmp_path, "elsewhere"))
    os.symlink(os.path.join(tmp_path, "elsewhere"), os.path.join(path, "__0_0.distcp"))
    assert inspect_checkpoint(path).seal is Seal.OPEN


# ---- what a directory is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names", "format_"),
    [
        (b"step-1", [b".metadata", b"__0_0.distcp"], Format.DCP),
        (b"step-1", [b"__3_0.distcp"], Format.DCP),
        (b"step-1", [b"__0_0.distcp", b".metadata", b"meta.pt"], Format.FSDP),
        (b"x.ckpt", [b".metadata"], Format.DCP),
        (b"step-1", [b".metadata"], Format.DCP),
        (b"workspace", [b".metadata", b"project"], None),
        (b"global_step5", [b"mp_rank_00_model_states.pt"], Format.DEEPSPEED),
        (b"any", [b"zero_pp_rank_0_mp_rank_00_optim_states.pt"], Format.DEEPSPEED),
        (b"any", [b"layer_00-model_states.pt"], Format.DEEPSPEED),
        (b"x.ckpt", [b"checkpoint"], Format.DEEPSPEED),
        (b"checkpoint-5", [b"global_step5", b"latest"], Format.DEEPSPEED),
        (b"run", [b"global_step5", b"global_step10", b"latest"], None),
        (b"checkpoint-5", [b"config.json", b"model.safetensors"], Format.TRANSFORMERS),
        (b"checkpoint-5", [b"model-00001-of-00002.safetensors"], Format.TRANSFORMERS),
        (b"checkpoint-5", [b"adapter_model.safetensors"], Format.TRANSFORMERS),
        (b"checkpoint-5", [b"pytorch_model_fsdp_0"], Format.TRANSFORMERS),
        (b"checkpoint-5", [b"notes.txt", b"config.json"], None),
        (b"checkpoint-5", [], None),
        (b"model", [b"config.json", b"model.safetensors"], None),
        (b"checkpoints", [b"epoch=1.ckpt", b"last.ckpt"], None),
    ],
)
def test_a_directory_is_claimed_by_the_names_in_it(name: bytes, names: list[bytes], format_: Format | None) -> None:
    assert claim(name, names) is format_


@pytest.mark.parametrize("kind", EVERY)
def test_every_file_of_a_checkpoint_that_makes_it_whole_is_worth_a_look(
    kind: str, written: Callable[[str], str]
) -> None:
    for name in needed_files(written(kind)):
        assert is_member_name(os.path.basename(name).encode())
    assert not is_member_name(b"best.ckpt")
    assert not is_member_name(b"config.yaml")


def test_the_files_that_say_most_are_opened_first() -> None:
    names = [b"__0_0.distcp", b"optimizer.pt", b"notes", b"model-00001-of-00002.safetensors", b".metadata", b"meta.pt"]
    assert sorted(names, key=wants)[:2] == [b".metadata", b"meta.pt"]
    assert sorted(names, key=wants)[-1] == b"notes"


def test_a_directorys_identity_changes_with_each_of_its_files(written: Callable[[str], str]) -> None:
    path = written("dcp")

    def now() -> tuple[object, str]:
        parts = parts_of(path, opened=lambda name: False)
        return directory_identity(identity_of(os.stat(path)), parts), shards_digest(parts)

    before = now()
    assert now() == before
    os.utime(os.path.join(path, "__0_0.distcp"), ns=(1, 1))
    assert now()[1] != before[1]
    before = now()
    os.rename(os.path.join(path, "__0_0.distcp"), os.path.join(path, "__0_1.distcp"))
    assert now()[1] != before[1]
    identity, _ = now()
    assert identity == inspect_checkpoint(path).identity


def test_other_directories_are_refused(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(Unreadable, match="none that holds a sharded checkpoint"):
        inspect_checkpoint(tmp_path)


def test_a_link_to_a_directory_is_judged_by_the_directorys_own_name(
    tmp_path: os.PathLike[str], written: Callable[[str], str]
) -> None:
    link = os.path.join(tmp_path, "last")
    os.symlink(written("transformers"), link)
    inspection = inspect_checkpoint(link)
    assert inspection.is_valid
    assert inspection.checkpoint_path == link


def test_a_file_that_changed_since_it_was_opened_says_so(written: Callable[[str], str]) -> None:
    path = written("dcp")
    parts = parts_of(path)
    os.utime(os.path.join(path, "__0_0.distcp"), ns=(1, 1))
    with pytest.raises(Changed):
        inspect_parts(path, parts)


# ---- more files than may be opened -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_not_opened_is_judged_by_presence_and_size(kind: str, written: Callable[[str], str]) -> None:
    path = written(kind)
    read = (name for name in files_in(path) if name != "zero_to_fp32.py")
    opened = set(sorted(read, key=lambda name: wants(name.encode()))[:-1])
    inspection = inspect_parts(path, parts_of(path, opened=opened.__contains__), Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    assert "shards.unopened" in codes(inspection)
    assert inspection.level is Level.STRUCTURE
    assert inspection.digest is None
    assert inspection.content_id is None or kind in ("deepspeed", "deepspeed_lightning")  # the optimizer's is closed
    assert inspection.safety is not Safety.SAFE
    if any(name.endswith("__0_0.distcp") for name in opened) or not kind.startswith(("dcp", "fsdp")):
        assert inspection.archive_id == inspect_checkpoint(path).archive_id


def test_an_unopened_shard_that_is_too_short_is_found(written: Callable[[str], str]) -> None:
    path = written("dcp")
    os.truncate(os.path.join(path, "__0_0.distcp"), 100)
    parts = parts_of(path, opened=lambda name: name == ".metadata")
    assert "archive.truncated" in codes(inspect_parts(path, parts))


def test_many_shards_are_opened_as_far_as_descriptors_go(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "step-1")
    weights = {f"layer.{i}": torch.full((2,), float(i)) for i in range(260)}
    save_dcp(path, {"state_dict": weights}, single_file_per_rank=False)
    inspection = inspect_checkpoint(path)
    assert inspection.is_valid, inspection.findings
    assert inspection.n_parameters == 520
    assert len(inspection.shards) == 261
    assert "shards.unopened" in codes(inspection)


# ---- several processes -----------------------------------------------------------------------------------------

_RANK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor, Shard, Replicate
rank, size, store, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
mesh = init_device_mesh("cpu", (size,))
torch.manual_seed(1)
whole = {"a": torch.randn(7, 3), "b": torch.randn(5), "c": torch.randn(4, 6), "d": torch.tensor(3.5)}
placed = {"a": Shard(0), "b": Shard(0), "c": Shard(1), "d": Replicate()}
state = {n: distribute_tensor(t, mesh, [placed[n]]) for n, t in whole.items()}
dcp.save({"state_dict": state, "epoch": 5}, checkpoint_id=path)
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the group for a moment, and then abort the interpreter's end
"""


@pytest.mark.slow
def test_tensors_cut_over_several_processes_are_put_together(tmp_path: os.PathLike[str]) -> None:
    path, store = os.path.join(tmp_path, "step-1"), os.path.join(tmp_path, "store")
    arguments = [[sys.executable, "-c", _RANK, str(rank), "2", store, path] for rank in range(2)]
    processes = [subprocess.Popen(each) for each in arguments]
    assert [process.wait(50) for process in processes] == [0, 0]
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert inspection.is_valid, inspection.findings
    assert inspection.level is Level.CHECKSUM
    torch.manual_seed(1)
    whole = {"a": torch.randn(7, 3), "b": torch.randn(5), "c": torch.randn(4, 6), "d": torch.tensor(3.5)}
    assert {t.name: t.shape for t in inspection.tensors} == {
        f"state_dict.{name}": tuple(value.shape) for name, value in whole.items()
    }
    assert inspection.n_parameters == sum(value.numel() for value in whole.values())
    assert inspection.epoch == 5
    # Cut along the first dimension, the checksum of the whole follows from those of the parts.
    rows = {name: value for name, value in whole.items() if name != "c"}
    expected = put(str(tmp_path), "rows.ckpt", saved({"state_dict": rows}))
    by_rows = os.path.join(tmp_path, "rows")
    shutil.copytree(path, by_rows)
    metadata = dcp.FileSystemReader(path).read_metadata()
    del metadata.state_dict_metadata["state_dict.c"]
    put(by_rows, ".metadata", pickle.dumps(metadata))
    assert inspect_checkpoint(by_rows).content_id == inspect_checkpoint(expected).content_id


@pytest.mark.parametrize(("first", "second"), [(b"", b""), (b"a", b""), (b"", b"b"), (b"ab" * 999, bytes(70_000))])
def test_checksums_of_pieces_make_that_of_the_whole(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
