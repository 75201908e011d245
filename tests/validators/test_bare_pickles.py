"""A pickle under a checkpoint's name, without a format around it: `torch.load` runs that as well, so it is judged."""

import pickle
from pathlib import Path

import pytest

from ckptd.validators import inspect_checkpoint
from ckptd.validators.inspection import Inspection, Safety

CALLS = {
    "protocol 2": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
    "protocol 0": b"cos\nsystem\n(S'id'\ntR.",
    "protocol 0, by INST": b"(S'id'\nios\nsystem\n.",
    "behind the first": pickle.dumps({}) + b"cos\nsystem\n(S'id'\ntR.",
    "before what cannot be parsed": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R\xff\xff",
}


def _inspected(tmp_path: Path, data: bytes) -> Inspection:
    path = tmp_path / "a.ckpt"
    path.write_bytes(data)
    return inspect_checkpoint(path)


@pytest.mark.parametrize("name", CALLS)
def test_what_loading_it_would_call_is_said(name: str, tmp_path: Path) -> None:
    inspection = _inspected(tmp_path, CALLS[name])
    codes = [found.code for found in inspection.findings]
    assert codes[0] in ("format.unsupported", "format.not_a_checkpoint")
    assert "pickle.dangerous_name" in codes
    assert inspection.safety is Safety.UNSAFE
    assert inspection.unsafe_globals == ("os.system",)


def test_nobody_is_told_to_load_it_without_trust(tmp_path: Path) -> None:
    (unsupported, *_) = _inspected(tmp_path, CALLS["protocol 2"]).findings
    assert "trust" in unsupported.remedy


def test_a_harmless_one_is_never_called_safe(tmp_path: Path) -> None:
    """Nothing is proved of what is not described."""
    inspection = _inspected(tmp_path, pickle.dumps({"a": [1, 2.0, "x"]}))
    assert [found.code for found in inspection.findings] == ["format.unsupported"]
    assert inspection.safety is Safety.UNKNOWN


def test_names_of_custom_classes_are_listed(tmp_path: Path) -> None:
    inspection = _inspected(tmp_path, b"\x80\x02cmine.models\nNet\n)\x81.")
    assert inspection.unsafe_globals == ("mine.models.Net",)
    assert inspection.safety is Safety.UNKNOWN


@pytest.mark.parametrize(
    "text", [b"class Net:\n    import os\n", b"checkpoint of 2026\nsee os.system\n", b"import os\n", b"(c) somebody\n"]
)
def test_a_text_is_a_text(text: bytes, tmp_path: Path) -> None:
    """Some texts begin as old pickles do."""
    inspection = _inspected(tmp_path, text)
    assert [found.code for found in inspection.findings] == ["format.not_a_checkpoint"]
    assert inspection.unsafe_globals == ()
