"""An entry shows what its description knows, in JSON that every reader can take."""

import math
from pathlib import Path

import msgspec
import pytest

from ckptd.catalog.describe import failed_description
from ckptd.catalog.description import (
    Checkpointing,
    CheckpointMetadata,
    DescribeRequest,
    Description,
    Encoder,
    Metrics,
    Model,
    Training,
)
from ckptd.catalog.entry import (
    CheckpointEntry,
    Health,
    Identities,
    MetadataSource,
    checkpoint_id,
    make_record,
    rfc3339,
)
from ckptd.catalog.roots import Root
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity

IDENTITY = FileIdentity(1, 1234, 1_760_143_482_123_456_789, 5)
ROOT = Root(b"/data/outputs")


def description(path: bytes, metadata: CheckpointMetadata) -> Description:
    request = DescribeRequest(checkpoint_path="/data/outputs/x", relative_path=path)
    failed = failed_description(request, IDENTITY, finding("file.unreadable", "no"))
    return msgspec.structs.replace(failed, metadata=metadata, config_path="exp/config.yaml")


def entry(metadata: CheckpointMetadata, path: bytes = b"exp/best.ckpt") -> CheckpointEntry:
    record = make_record(
        ROOT,
        path,
        description(path, metadata),
        Health.INVALID,
        identities=Identities(IDENTITY),
        metadata_source=MetadataSource.SIDECAR,
    )
    assert record.modified_ns == IDENTITY.mtime_ns
    assert record.relative_path == path
    assert msgspec.json.decode(record.encoded, type=CheckpointEntry) == record.entry
    return record.entry


def test_an_entry_shows_its_description() -> None:
    shown = entry(
        CheckpointMetadata(
            exp_name="exp",
            training=Training(epoch=0, global_step=9),
            model=Model(architecture="dbnet", encoder=Encoder(model_name="resnet18")),
            metrics=Metrics(hmean=0.5, additional_metrics={"val/acc": 0.25}),
            checkpointing=Checkpointing(monitor="val/hmean", mode="max"),
        )
    )
    assert shown.id == checkpoint_id(ROOT.name, b"exp/best.ckpt")
    assert (shown.path, shown.root, shown.checkpoint_path) == (
        "exp/best.ckpt",
        "/data/outputs",
        "/data/outputs/exp/best.ckpt",
    )
    assert shown.display_name == "exp/best"
    assert (shown.architecture, shown.backbone, shown.epoch, shown.global_step) == ("dbnet", "resnet18", 0, 9)
    assert shown.metrics == {"hmean": 0.5, "val/acc": 0.25}
    assert (shown.monitor, shown.monitor_mode, shown.monitor_value) == ("val/hmean", "max", 0.5)
    assert (shown.size_bytes, shown.modified_at) == (1234, "2025-10-11T00:44:42.123Z")
    assert (shown.findings[0].code, shown.findings[0].severity) == ("file.unreadable", "error")
    assert (shown.has_metadata, shown.has_config, shown.config_path) == (True, True, "exp/config.yaml")


def test_a_monitor_whose_value_is_unknown_has_none() -> None:
    assert entry(CheckpointMetadata(checkpointing=Checkpointing(monitor="val/acc"))).monitor_value is None


def test_metrics_that_json_cannot_say_are_dropped() -> None:
    shown = entry(CheckpointMetadata(metrics=Metrics(hmean=math.nan, recall=0.0, additional_metrics={"a": math.inf})))
    assert shown.metrics == {"recall": 0.0}


def test_a_path_that_is_not_utf8_is_shown_escaped_with_its_bytes() -> None:
    shown = entry(CheckpointMetadata(), b"exp/\xff.ckpt")
    assert (shown.path, shown.display_name) == ("exp/\\xff.ckpt", "\\xff")
    assert shown.path_base64 == "ZXhwL/8uY2twdA=="


@pytest.mark.parametrize(
    ("time_ns", "digits", "text"),
    [
        (0, 3, "1970-01-01T00:00:00.000Z"),
        (1_760_143_482_123_999_999, 3, "2025-10-11T00:44:42.123Z"),
        (1_760_143_482_123_456_789, 9, "2025-10-11T00:44:42.123456789Z"),
        (-1, 9, "1969-12-31T23:59:59.999999999Z"),
        (1 << 70, 3, None),
        (-(1 << 70), 3, None),
    ],
)
def test_times_of_any_file_have_a_text(time_ns: int, digits: int, text: str | None) -> None:
    shown = rfc3339(time_ns, digits)
    assert shown == text or (text is None and shown[:4] in ("9999", "0001"))


def test_the_name_alone_is_shown_where_nobody_named_the_experiment(tmp_path: Path) -> None:
    assert entry(CheckpointMetadata()).display_name == "best"


def test_a_stranger_decides_neither_the_length_of_a_list_nor_the_memory_of_a_catalog() -> None:
    """An entry is in every list, in every snapshot and in memory: a sidecar of 1 MB made it one of 1 MB."""
    long = "A" * 400_000
    shown = entry(
        CheckpointMetadata(
            exp_name=long,
            created_at=long,
            model=Model(architecture=long, encoder=Encoder(model_name=long)),
            metrics=Metrics(hmean=0.5, additional_metrics={f"m{n}": 1.0 for n in range(50_000)} | {long: 2.0}),
            checkpointing=Checkpointing(monitor=long, mode=long),
        )
    )
    assert len(msgspec.json.encode(shown)) < 40_000
    assert shown.exp_name is not None
    assert shown.exp_name.startswith("AAAA")
    assert shown.exp_name.endswith("\u2026"), "what was cut off shows"
    assert list(shown.metrics)[:3] == ["hmean", "m0", "m1"]
    assert long not in shown.metrics
