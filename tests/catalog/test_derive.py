"""Each value comes from the first source that knows it, and says which one that was."""

import msgspec
import pytest

from ckptd.catalog.derive import Derived, Surroundings, derive_metadata, score_of
from ckptd.catalog.metadata import parse_metadata
from ckptd.validators.inspection import CallbackState, FileIdentity, Inspection

IDENTITY = FileIdentity(1, 10, 1_760_143_482_123_456_789, 0)
PATH = "/data/outputs/exp/checkpoints/epoch-05_step-000205_hmean-0.8756.ckpt"
RELATIVE = b"exp/checkpoints/epoch-05_step-000205_hmean-0.8756.ckpt"


def inspection(**facts: object) -> Inspection:
    return msgspec.structs.replace(Inspection(checkpoint_path=PATH, identity=IDENTITY), **facts)


def derive(found: Inspection | None = None, **around: object) -> Derived:
    given = {"checkpoint_path": PATH, "relative_path": RELATIVE, **around}
    return derive_metadata(found or inspection(), Surroundings(**given))  # type: ignore[arg-type]


def saver(**state: object) -> CallbackState:
    return CallbackState(**{"key": "ModelCheckpoint{}", "kind": "ModelCheckpoint", **state})  # type: ignore[arg-type]


def test_sidecar_then_checkpoint_then_config_then_file_name_then_layout() -> None:
    sidecar = parse_metadata(b"exp_name: from_sidecar\nmetrics: {recall: 0.1}\n")
    config = {"exp_name": "from_config", "trainer": {"max_epochs": 9}, "model": {"architecture_name": "c"}}
    inside = inspection(epoch=0, hyper_parameters={"architecture_name": "b", "exp_name": "from_hparams"})
    derived = derive(inside, sidecar=sidecar, config=config)
    metadata = derived.metadata
    assert (metadata.exp_name, derived.provenance["exp_name"]) == ("from_sidecar", "sidecar")
    assert (metadata.training.epoch, derived.provenance["training.epoch"]) == (0, "checkpoint")
    assert (metadata.model.architecture, derived.provenance["model.architecture"]) == ("b", "checkpoint")
    assert (metadata.training.max_epochs, derived.provenance["training.max_epochs"]) == (9, "config")
    assert (metadata.training.global_step, derived.provenance["training.global_step"]) == (205, "file_name")
    assert (metadata.metrics.hmean, derived.provenance["metrics.hmean"]) == (0.8756, "file_name")
    assert derived.provenance["metrics.recall"] == "sidecar"
    assert derive().metadata.exp_name == "exp"
    assert derive().provenance["exp_name"] == "layout"
    assert (metadata.created_at, derived.provenance["created_at"]) == ("2025-10-11T00:44:42.123Z", "file")


def test_every_known_value_has_an_origin_and_no_unknown_one_has() -> None:
    derived = derive(inspection(metrics={"val/acc": 0.5}), config={"model": {"decoder": {"name": "fpn", "params": {}}}})
    known = {"exp_name", "created_at", "training.epoch", "training.global_step", "metrics.hmean", "model.decoder.name"}
    assert set(derived.provenance) == known | {"metrics.additional_metrics.val/acc", "model.decoder.params"}


def test_a_score_belongs_to_the_file_that_its_path_names() -> None:
    scores = {"/train/exp/checkpoints/best.ckpt": 0.9, "/train/exp/checkpoints/epoch=1.ckpt": 0.7}
    state = saver(monitor="val/hmean", mode="max", best_k_models=scores)
    assert score_of(state, "/data/exp/checkpoints/best.ckpt") == 0.9
    assert score_of(state, "/data/exp/checkpoints/epoch=1.ckpt") == 0.7
    assert score_of(state, "/data/exp/checkpoints/last.ckpt") is None


def test_the_current_score_of_a_callback_is_nobodys() -> None:
    state = saver(monitor="m", current_score=0.5, best_model_score=0.5, best_model_path="/t/best.ckpt")
    assert score_of(state, "/t/last.ckpt") is None
    assert score_of(state, "/elsewhere/best.ckpt") == 0.5


def test_of_equal_base_names_the_longest_common_path_decides_and_a_tie_decides_nothing() -> None:
    scores = {"/t/epoch=1-val/hmean=0.5.ckpt": 1.0, "/t/epoch=2-val/hmean=0.5.ckpt": 2.0}
    state = saver(monitor="val_loss", best_k_models=scores)
    assert score_of(state, "/data/epoch=2-val/hmean=0.5.ckpt") == 2.0
    assert score_of(state, "/data/elsewhere/hmean=0.5.ckpt") is None


def test_the_value_goes_under_the_monitored_name() -> None:
    state = saver(monitor="val/acc", mode="max", best_k_models={PATH: 0.75})
    derived = derive(inspection(callbacks=(state,)))
    assert derived.metadata.metrics.additional_metrics == {"val/acc": 0.75}
    assert derived.metadata.checkpointing.monitor == "val/acc"
    loss = saver(monitor="val_loss", mode="min", best_k_models={PATH: 0.25})
    assert derive(inspection(callbacks=(loss,))).metadata.metrics.validation_loss == 0.25


def test_of_several_callbacks_the_one_that_names_the_file_is_its_monitor() -> None:
    mine, other = saver(monitor="a", mode="max", best_k_models={PATH: 1.0}), saver(monitor="b", mode="min")
    assert derive(inspection(callbacks=(other, mine))).metadata.checkpointing.monitor == "a"
    unclear = inspection(callbacks=(other, saver(monitor="c")))
    assert derive(unclear).metadata.checkpointing.monitor is None


ENCODER = {"name": "resnet18", "pretrained": True}
MODEL = {"arch": "dbnet", "encoder": ENCODER}


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"architecture_name": "dbnet", "encoder": {"model_name": "resnet18", "pretrained": True}}},
        {"model": {"architecture": "dbnet", "encoder": ENCODER}},
        {"models": {"architecture_name": "dbnet", "component_overrides": {"encoder": ENCODER}}},
        {"config": {"model": {"arch": "dbnet", "backbone": ENCODER}}},
        {"model": {"class_path": "a.b.Net", "init_args": MODEL}},
        {"_wandb": {}, "model": {"desc": None, "value": MODEL}},
    ],
)
def test_common_shapes_of_configs(config: dict[str, object]) -> None:
    model = derive(config=config).metadata.model
    assert (model.architecture, model.encoder.model_name, model.encoder.pretrained) == ("dbnet", "resnet18", True)


def test_a_target_names_a_part_but_never_the_architecture() -> None:
    config = {
        "model": {
            "_target_": "ocr.models.OCRModel",
            "encoder": {"_target_": "ocr.models.TimmBackbone"},
            "decoder": {"_target_": "ocr.models.decoder.UNet", "in_channels": [64, 128]},
            "loss": {"_target_": "ocr.losses.DBLoss"},
        }
    }
    model = derive(config=config).metadata.model
    assert (model.architecture, model.encoder.model_name) == (None, None)
    assert (model.decoder.name, model.decoder.in_channels, model.loss.name) == ("UNet", [64, 128], "DBLoss")


SAVER = {"monitor": "m", "mode": "max", "save_top_k": 3, "save_last": True}


@pytest.mark.parametrize(
    "config",
    [
        {"callbacks": {"model_checkpoint": SAVER}},
        {"trainer": {"callbacks": [{"class_path": "l.ModelCheckpoint", "init_args": SAVER}]}},
        {"callbacks": [{"_target_": "l.ModelCheckpoint", **SAVER}, {"_target_": "l.EarlyStopping", "monitor": "x"}]},
    ],
)
def test_checkpointing_from_the_config(config: dict[str, object]) -> None:
    found = derive(config=config).metadata.checkpointing
    assert (found.monitor, found.mode, found.save_top_k, found.save_last) == ("m", "max", 3, True)


def test_two_configured_callbacks_say_nothing() -> None:
    callback = {"_target_": "l.ModelCheckpoint", "monitor": "m"}
    config = {"callbacks": {"a": callback, "b": callback | {"monitor": "n"}}}
    assert derive(config=config).metadata.checkpointing.monitor is None


def test_interpolations_and_missing_values_are_not_known() -> None:
    config = {"exp_name": "${now:%Y}", "model": {"architecture_name": "???", "encoder": {"model_name": "${a}"}}}
    metadata = derive(config=config).metadata
    assert (metadata.exp_name, metadata.model.architecture, metadata.model.encoder.model_name) == ("exp", None, None)


@pytest.mark.parametrize(
    "config", [None, [], "text", 5, {"model": 5}, {"callbacks": 5}, {"trainer": []}, {"model": []}]
)
def test_configs_of_any_shape_are_survived(config: object) -> None:
    assert derive(config=config).metadata.exp_name == "exp"


def test_places_of_hydra_and_wandb_are_noted() -> None:
    wandb = b"exp/wandb/run-20251011_004442-3kd8s0ab/files/config.yaml"
    assert derive(config_name=wandb, wandb_run="3kd8s0ab").metadata.wandb_run_id == "3kd8s0ab"
    assert derive(config_name=wandb).metadata.hydra_config_path is None
    assert derive(config_name=b"exp/.hydra/config.yaml").metadata.hydra_config_path == "exp/.hydra/config.yaml"
