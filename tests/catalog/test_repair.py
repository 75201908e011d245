"""What older generators got wrong is corrected, what is right stays, and the file stays a person's own."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.description import Checkpointing, CheckpointMetadata, Encoder, Metrics, Model, Training
from ckptd.catalog.documents import load_document
from ckptd.catalog.metadata import parse_document
from ckptd.catalog.repair import Evidence, repaired
from ckptd.catalog.repair_text import repaired_file
from ckptd.catalog.sidecar import render

PATH = "/srv/outputs/exp/checkpoints/best.ckpt"
WHOLE = CheckpointMetadata(
    checkpoint_path=PATH,
    exp_name="exp",
    training=Training(epoch=12, global_step=100),
    model=Model(architecture="dbnet", encoder=Encoder(model_name="resnet18")),
    metrics=Metrics(precision=0.8, recall=0.6, hmean=0.6857),
    checkpointing=Checkpointing(monitor="val/hmean", mode="max"),
)


def whole():
    """A document of schema 1.0 with nothing wrong in it."""
    return yaml.safe_load(render(WHOLE))


def document(**changes):
    """The same, with these values at dotted places."""
    made = whole()
    for field, value in changes.items():
        *sections, name = field.split("__")
        place = made
        for section in sections:
            place = place[section]
        place[name] = value
    return made


def evidence(*, named=None, **known):
    return Evidence(checkpoint_path=PATH, known=CheckpointMetadata(**known), named=named or {})


def changed(before, around):
    """Field → (old, new), and the corrected document; a second repair of which finds nothing."""
    after, changes = repaired(before, around)
    assert repaired(after, around) == (after, ())
    assert all(change.why for change in changes)
    return {".".join(change.field): (change.old, change.new) for change in changes}, after


def test_a_right_one_is_not_touched_whatever_else_is_known():
    other = evidence(
        training=Training(epoch=3),
        model=Model(architecture="other"),
        metrics=Metrics(hmean=0.1, validation_loss=0.2),
        checkpointing=Checkpointing(monitor="val/loss"),
    )
    for around in (evidence(), other):
        assert changed(whole(), around)[0] == {}


@pytest.mark.parametrize("said", ["ocrmodel", "OCRModel", "unknown", "Unknown"])
@pytest.mark.parametrize(("known", "right"), [(None, None), ("dbnetpp", "dbnetpp"), ("OCRModel", None)])
def test_an_architecture_that_is_none_becomes_the_known_one_or_null(said, known, right):
    around = evidence(model=Model(architecture=known))
    assert changed(document(model__architecture=said), around)[0] == {"model.architecture": (said, right)}


def test_unknown_parts_become_known_or_null_and_an_experiment_may_have_any_name():
    before = document(exp_name="unknown", model__encoder__model_name="unknown", model__head__name="unknown")
    around = evidence(model=Model(encoder=Encoder(model_name="resnet50")))
    assert changed(before, around)[0] == {
        "model.encoder.model_name": ("unknown", "resnet50"),
        "model.head.name": ("unknown", None),
    }


@pytest.mark.parametrize("said", [998, 999, "999"])
@pytest.mark.parametrize("known", [None, 0, 7, 998, 999])
def test_an_epoch_that_older_generators_made_up_counts_only_if_the_checkpoint_says_so(said, known):
    found = changed(document(training__epoch=said), evidence(training=Training(epoch=known)))[0]
    assert found == ({} if known == int(said) else {"training.epoch": (said, known)})


@pytest.mark.parametrize("said", [0, 1, 997, 1000, None])
def test_any_other_epoch_is_a_persons(said):
    assert changed(document(training__epoch=said), evidence(training=Training(epoch=5)))[0] == {}


LOSS = Checkpointing(monitor="val/loss", mode="min")


@pytest.mark.parametrize(
    "around",
    [
        evidence(checkpointing=LOSS, metrics=Metrics(validation_loss=0.1234)),
        evidence(checkpointing=LOSS, named={"val_loss": 0.1234}),
    ],
    ids=["score in the checkpoint", "score in the file name"],
)
def test_an_hmean_that_is_another_monitors_value_goes_under_that_name(around):
    before = document(metrics__hmean=0.1234, metrics__precision=None, checkpointing__monitor=None)
    found, after = changed(before, around)
    assert found == {"metrics.hmean": (0.1234, None), "metrics.validation_loss": (None, 0.1234)}
    assert parse_document(after).metadata.metrics.flat() == {"recall": 0.6, "validation_loss": 0.1234}


def test_a_monitor_that_the_schema_has_no_key_for_keeps_its_name():
    before = document(metrics__hmean=0.91, metrics__recall=None, checkpointing__monitor="val/f1")
    around = evidence(metrics=Metrics(hmean=0.5, additional_metrics={"val/f1": 0.91}))
    found, _ = changed(before, around)
    assert found == {"metrics.hmean": (0.91, 0.5), "metrics.additional_metrics.val/f1": (None, 0.91)}


@pytest.mark.parametrize(
    ("metrics", "around"),
    [
        ({"hmean": 0.8, "precision": 0.8, "recall": 0.8}, evidence(checkpointing=Checkpointing(monitor="val/recall"))),
        ({"hmean": 0.5}, evidence(checkpointing=LOSS, metrics=Metrics(hmean=0.5, validation_loss=0.5))),
        ({"hmean": 0.5}, evidence(checkpointing=LOSS, metrics=Metrics(validation_loss=0.4))),
        ({"hmean": 0.5}, evidence(checkpointing=LOSS)),
        ({"hmean": 0.5}, evidence(named={"val_loss": 0.5})),
    ],
    ids=["precision and recall bear it out", "the checkpoint says so", "another value", "no score", "no monitor"],
)
def test_an_hmean_that_may_be_one_is_a_persons(metrics, around):
    before = document(metrics=whole()["metrics"] | {"precision": None, "recall": None} | metrics)
    before["checkpointing"]["monitor"] = None
    assert changed(before, around)[0] == {}


@pytest.mark.parametrize(
    "said",
    [
        "best.ckpt",
        "checkpoints/best.ckpt",
        "outputs/exp/checkpoints/best.ckpt",
        "../best.ckpt",
        "/srv/outputs/exp/checkpoints/last.ckpt",
        "/old/place/best.ckpt",
    ],
)
def test_a_path_that_leads_elsewhere_becomes_the_absolute_one(said):
    assert changed(document(checkpoint_path=said), evidence())[0] == {"checkpoint_path": (said, PATH)}


@pytest.mark.parametrize("said", [PATH, "/mnt/nfs/outputs/exp/checkpoints/best.ckpt", None])
def test_the_same_file_seen_by_another_machine_is_no_mistake(said):
    assert changed(document(checkpoint_path=said), evidence())[0] == {}


def test_every_key_that_is_missing_is_added_with_what_the_document_says_elsewhere_or_null():
    found, after = changed({"hmean": 0.9, "encoder": "resnet18", "epoch": 4, "note": "mine"}, evidence())
    assert set(whole()) - {"source"} <= set(after)
    assert (after["metrics"]["hmean"], after["training"]["epoch"]) == (0.9, 4)
    assert after["model"]["encoder"] == {"model_name": "resnet18", "pretrained": None, "frozen": None}
    assert after["note"] == "mine"
    assert "source" not in after, "whose file it is, its author says"
    assert all(old is None for old, _ in found.values())


def test_a_bad_value_of_an_older_layout_does_not_come_back_through_the_new_keys():
    found, after = changed({"epoch": 999, "architecture": "ocrmodel", "model": "ocrmodel"}, evidence())
    assert parse_document(after).metadata.training.epoch is None
    assert parse_document(after).metadata.model.architecture is None
    assert {"epoch", "architecture"} <= set(found)


def test_a_person_s_own_words_stay_where_a_section_belongs():
    before = document(training="see my notes", model__decoder=[1, 2])
    assert changed(before, evidence())[0] == {}


def test_a_later_schema_is_left_alone():
    before = {"schema_version": "2.0", "epoch": 999}
    assert repaired(before, evidence()) == (before, ())


# ---- text ----------------------------------------------------------------------------------------------------------

COMMENTED = """\
# the run that went into the paper
schema_version: "1.0"
checkpoint_path: checkpoints/best.ckpt   # as the old script wrote it
created_at: 2025-10-11T00:44:42
training: {epoch: 999, global_step: 0x10}
model:
    architecture: OCRModel    # sic
    encoder:
        model_name: resnet18
user:
  note: |
    two lines,
    kept
  when: 2025-10-11
"""


def test_the_text_around_a_change_stays_as_it_was():
    data, changes = repaired_file(COMMENTED.encode(), evidence(training=Training(epoch=7)), is_json=False)
    lines = data.decode().splitlines()
    assert lines[:6] == [
        "# the run that went into the paper",
        'schema_version: "1.0"',
        f"checkpoint_path: {PATH}   # as the old script wrote it",
        "created_at: 2025-10-11T00:44:42",
        "training: {epoch: 7, global_step: 0x10, training_phase: null, max_epochs: null}",
        "model:",
    ]
    assert "    architecture: null    # sic" in lines
    read = yaml.safe_load(data)
    before = yaml.safe_load(COMMENTED)
    assert read["user"] == before["user"]
    assert read["created_at"] == before["created_at"], "a date stays a date for whoever reads YAML"
    assert read["model"]["encoder"] == {"model_name": "resnet18", "pretrained": None, "frozen": None}
    assert repaired_file(data, evidence(training=Training(epoch=7)), is_json=False) == (data, ())
    assert len(changes) > 3


@pytest.mark.parametrize(
    "text",
    [
        "epoch: 999",
        "epoch: 999\r\nmodel:\r\n  architecture: unknown\r\n",
        "{epoch: 998, model: {}, metrics: {}}",
        "epoch: 999\n...\n",
        "---\nepoch: 999\n",
        "epoch:\n  999\nmodel:\n  architecture: >\n    unknown\n",
        "metrics:\nmodel:\n  encoder:\nepoch: 999\n",
        '"epoch": "999"\n? model\n: architecture: unknown\n',
        "  epoch: 999\n  model:\n    architecture: unknown\n",
        "umlaut: Größe ✓\nepoch: 999 # ü\n",
    ],
)
def test_whatever_its_form_the_file_says_what_was_meant(text):
    around = evidence(training=Training(epoch=3))
    data, changes = repaired_file(text.encode(), around, is_json=False)
    right, expected = repaired(load_document(text.encode(), is_json=False), around)
    assert (load_document(data, is_json=False), changes) == (right, expected)
    assert repaired_file(data, around, is_json=False) == (data, ())


def test_json_stays_json():
    data, changes = repaired_file(json.dumps({"epoch": 999, "user": {"a": "ü"}}).encode(), evidence(), is_json=True)
    assert json.loads(data)["training"]["epoch"] is None
    assert json.loads(data)["user"] == {"a": "ü"}
    assert changes


WORDS = st.sampled_from(
    ["epoch", "model", "metrics", "training", "hmean", "architecture", "encoder", "val/loss", "user", "a b", "- x", "#"]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 1000), st.sampled_from([999, 0.5, "unknown", "x: y", ""]))
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.dictionaries(WORDS, inner, max_size=4), max_leaves=12)


@given(DOCUMENTS.filter(lambda value: isinstance(value, dict)), st.booleans(), st.sampled_from([None, 2, 999]))
def test_any_document_is_repaired_once_and_for_all_and_keeps_what_nobody_knows(value, flow, epoch):
    text = yaml.safe_dump(value, default_flow_style=flow or None, sort_keys=False).encode()
    around = evidence(training=Training(epoch=epoch))
    data, changes = repaired_file(text, around, is_json=False)
    after = load_document(data, is_json=False)
    assert repaired_file(data, around, is_json=False) == (data, ())
    fields = {change.field for change in changes}
    known = {"epoch", "model", "metrics", "training", "architecture", "encoder", "hmean"}
    for name, old in load_document(text, is_json=False).items():
        if name not in known:
            assert after[name] == old
    assert bool(fields) == (data != text)
