"""Sidecars of schema 1.0 and of everything before it are read; what nobody knows stays null."""

import math

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.catalog.description import CheckpointMetadata, Metrics, Training
from ckptd.catalog.metadata import MetadataError, ParsedMetadata, metrics_of, parse_metadata
from ckptd.catalog.metric_names import metric_key, value_of
from ckptd.catalog.sidecar import render


def parsed(text: str) -> ParsedMetadata:
    return parse_metadata(text.encode())


def test_schema_1_0_reads_back_what_was_rendered() -> None:
    metadata = CheckpointMetadata(
        checkpoint_path="/x/best.ckpt",
        exp_name="exp",
        training=Training(epoch=0, global_step=12, max_epochs=-1),
        metrics=Metrics(hmean=0.5, additional_metrics={"test/f1": 0.25, "1e5": 2.0}),
        wandb_run_id="1234e567",
    )
    again = parse_metadata(render(metadata, {"user": {"note": "keep"}, "training": {"shift": "night"}}))
    assert msgspec.structs.replace(again.metadata, source=metadata.source) == metadata
    assert again.user == {"user": {"note": "keep"}, "training": {"shift": "night"}}


def test_epoch_0_is_an_epoch() -> None:
    assert parsed("training: {epoch: 0}").metadata.training.epoch == 0


@pytest.mark.parametrize(
    "text",
    [
        "hmean: 0.9\nprecision: 0.8\nval_loss: 0.1\nepoch: 3\nglobal_step: 7\nmonitor: val/hmean\nmode: max\n",
        "metrics: {val/hmean: 0.9, precision: 0.8, val/loss: 0.1}\ntraining: {epoch: '3', step: 7.0}\n"
        "checkpointing: {monitor: val/hmean, mode: max}\n",
        "metrics: {val: {hmean: 0.9, loss: 0.1}, precision: '0.8'}\nepoch: 3\nglobal_step: '7'\n"
        "monitor: val/hmean\nmonitor_mode: max\n",
        "cleval_metrics: {hmean: 0.9, precision: 0.8}\nmetrics: {validation_loss: 0.1}\n"
        "epoch: 3\nglobal_step: 7\nmonitor: val/hmean\nmode: max\n",
    ],
)
def test_older_variants_say_the_same(text: str) -> None:
    found = parsed(text)
    metadata = found.metadata
    assert metadata.schema_version == "1.0"
    assert metadata.metrics == Metrics(hmean=0.9, precision=0.8, validation_loss=0.1)
    assert (metadata.training.epoch, metadata.training.global_step) == (3, 7)
    assert (metadata.checkpointing.monitor, metadata.checkpointing.mode) == ("val/hmean", "max")
    assert found.user == {}


@pytest.mark.parametrize(
    "text",
    [
        "model: {encoder: resnet18, architecture: dbnet}",
        "model: {encoder_name: resnet18, architecture_name: dbnet}",
        "model: {encoder: {model_name: resnet18}, architecture: dbnet}",
        "model: {backbone: {name: resnet18}, arch: dbnet}",
        "model: dbnet\nencoder: resnet18",
        "architecture: dbnet\nbackbone: resnet18",
    ],
)
def test_an_encoder_may_be_a_name_or_a_section(text: str) -> None:
    model = parsed(text).metadata.model
    assert (model.architecture, model.encoder.model_name) == ("dbnet", "resnet18")


def test_unknown_keys_are_kept_where_they_stood_and_known_ones_are_not_repeated() -> None:
    found = parsed("exp_name: a\nuser: {note: b}\ntraining: {epoch: 1, gpu: c}\nhydra_config_path: null\n")
    assert found.user == {"user": {"note": "b"}, "training": {"gpu": "c"}}


def test_a_value_of_the_wrong_kind_is_unknown_and_not_lost() -> None:
    found = parsed("training: {epoch: soon, global_step: -5}\nmetrics: {hmean: good, recall: .nan}\nexp_name: '???'\n")
    assert found.metadata.training == Training()
    assert found.metadata.metrics == Metrics()
    assert found.metadata.exp_name is None
    assert found.user["training"] == {"epoch": "soon", "global_step": -5}
    assert found.user["metrics"] == {"hmean": "good", "recall": ".nan"}


def test_ranges_are_not_enforced() -> None:
    assert parsed("metrics: {hmean: 87.5}").metadata.metrics.hmean == 87.5


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"- a\n", b"text", b"42", b"a: [", b"a: &x 1"])
def test_what_is_no_metadata_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(MetadataError, match=r"\w+ \w+"):
        parse_metadata(data)


def test_json_of_older_trees_is_read() -> None:
    assert parse_metadata(b'{"exp_name": "a", "metrics": {"hmean": NaN}}', is_json=True).metadata.exp_name == "a"


@pytest.mark.parametrize(
    ("logged", "key"),
    [
        ("val_loss", "validation_loss"),
        ("val/loss", "validation_loss"),
        ("val/loss_epoch", "validation_loss"),
        ("validation_loss", "validation_loss"),
        ("eval_loss", "validation_loss"),
        ("val/hmean", "hmean"),
        ("Hmean", "hmean"),
        ("loss", "loss"),
        ("train/loss", "train/loss"),
        ("test/hmean", "test/hmean"),
        ("val/acc", "val/acc"),
    ],
)
def test_the_alias_table(logged: str, key: str) -> None:
    assert metric_key(logged) == key
    assert value_of(metrics_of({logged: 0.5}).flat(), logged) == 0.5


def test_two_names_for_one_slot_lose_neither_value() -> None:
    metrics = metrics_of({"val/hmean": 0.5, "hmean": 0.6, "val_hmean": 0.5})
    assert metrics.hmean == 0.6
    assert metrics.additional_metrics == {"val/hmean": 0.5, "val_hmean": 0.5}


def test_metrics_that_are_not_finite_are_dropped() -> None:
    assert metrics_of({"hmean": math.nan, "a": math.inf, "b": 1}).flat() == {"b": 1.0}


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=5), NAMES, NAMES)
def test_any_metadata_survives_its_file(metrics: dict[str, float], exp_name: str, note: str) -> None:
    """Every value reads back, every key is written, and PyYAML's own reader sees the same document."""
    metadata = CheckpointMetadata(exp_name=exp_name, metrics=metrics_of(metrics))
    data = render(metadata, {"user": {note: note}})
    again = parse_metadata(data)
    assert again.metadata.metrics == metadata.metrics
    stripped = exp_name.strip()
    assert again.metadata.exp_name == (stripped if stripped and "${" not in stripped and stripped != "???" else None)
    document = yaml.safe_load(data)
    assert list(document) == [*(f for f in CheckpointMetadata.__struct_fields__ if f != "source"), "user", "source"]
    assert document["user"] == {note: note}


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["training", "epoch", "metrics", "model", "encoder", "source", "val", "x"]), inner
            )
        ),
        max_leaves=15,
    )
)
def test_any_document_is_metadata_or_a_metadata_error(document: object) -> None:
    data = yaml.dump(document, Dumper=yaml.SafeDumper).encode("utf-8", "replace")
    try:
        found = parse_metadata(data)
    except MetadataError:
        return
    msgspec.json.encode(found.metadata)
