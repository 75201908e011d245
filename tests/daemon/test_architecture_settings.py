"""The settings `required_keys` and `architectures`: where they come from, and what cannot be used."""

import os
import pathlib
import subprocess

import msgspec
import pytest

from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.roots import resolve_roots
from ckptd.daemon.answers import Limits
from ckptd.daemon.rereads import judged_by
from ckptd.daemon.settings_loader import SettingsError, load_settings
from ckptd.daemon.zygote import with_architectures
from ckptd.daemon.zygote_process import ZYGOTE_COMMAND
from ckptd.validators.architectures import load_table

TABLE = "families: {mine: {part: head, layouts: [{expect: a.weight n}]}}"


def write(path: pathlib.Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("flags", "env", "text"),
    [
        ({"required_keys": ["a", "b"]}, {}, ""),
        ({}, {"CKPTD_REQUIRED_KEYS": "a,b"}, ""),
        ({}, {}, "required_keys: [a, b]"),
        ({}, {}, "required_keys: {'*': [a, b]}"),
    ],
)
def test_keys_for_all_roots_come_from_flags_environment_and_file(
    tmp_path: pathlib.Path, flags: dict[str, object], env: dict[str, str], text: str
) -> None:
    settings = load_settings(flags, env, write(tmp_path / "c.yaml", text))
    assert settings.required_at(b"/anywhere") == ("a", "b")


def test_keys_of_one_root_hold_beneath_it_and_nowhere_else(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    text = f"roots: [{tmp_path}/a, {tmp_path}/ab]\nrequired_keys: {{{tmp_path}/link: x, '*': y}}"
    settings = load_settings({}, {}, write(tmp_path / "c.yaml", text))
    beneath, beside = os.fsencode(tmp_path / "a/run/c.ckpt"), os.fsencode(tmp_path / "ab")
    assert settings.required_at(os.fsencode(tmp_path / "a")) == ("x", "y")
    assert (settings.required_at(beneath), settings.required_at(beside)) == (("x", "y"), ("y",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("required_keys: ['']", "'' is not a key"),
        ("required_keys: ['a b ']", "is not a key such as model.encoder"),
        ("required_keys: {/nowhere: [a]}", "'/nowhere', which is none of the roots"),
        ("required_keys: 3", "required_keys"),
        ("architectures: /nowhere/t.yaml", "/nowhere/t.yaml cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: pathlib.Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings({}, {}, write(tmp_path / "c.yaml", text))


def test_a_broken_table_is_refused_with_file_entry_and_reason(tmp_path: pathlib.Path) -> None:
    table = write(tmp_path / "t.yaml", TABLE.replace("head", "tail"))
    with pytest.raises(SettingsError, match=r"t\.yaml: families\.mine: part is 'tail'"):
        load_settings({"architectures": table}, {})


def test_a_zygote_makes_the_table_and_a_broken_one_does_not_keep_it_from_parsing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def describe(_request: DescribeRequest, _files: OpenedFiles, **given: object) -> Description:
        raise RuntimeError(given["architectures"])

    def table_for(path: str | None) -> object:
        job = with_architectures(describe, Limits.of(workers=1, memory_mb=64, timeout_s=1, architectures=path))
        with pytest.raises(RuntimeError) as caught:
            job(DescribeRequest(checkpoint_path="", relative_path=b""), OpenedFiles(checkpoint=0))
        return caught.value.args[0]

    assert table_for(None) is load_table()
    mine = table_for(write(tmp_path / "t.yaml", TABLE))
    assert mine == load_table(str(tmp_path / "t.yaml")) != load_table()
    assert table_for(str(tmp_path / "gone.yaml")) is load_table()
    assert "gone.yaml" in capsys.readouterr().err


def test_what_is_asked_has_one_digest_whatever_the_order(tmp_path: pathlib.Path) -> None:
    roots, _ = resolve_roots([str(tmp_path)])
    base = load_settings({"roots": [str(tmp_path)]}, {})
    more = load_settings({"roots": [str(tmp_path)], "required_keys": ["a"]}, {})
    table = load_settings({"roots": [str(tmp_path)], "architectures": write(tmp_path / "t.yaml", TABLE)}, {})
    digests = [judged_by(settings, roots) for settings in (base, more, table)]
    assert len(set(digests)) == 3
    assert judged_by(load_settings({"roots": [str(tmp_path)], "port": 1}, {}), roots) == digests[0]


def test_limits_cross_the_command_line_with_the_tables_path() -> None:
    limits = Limits.of(workers=1, memory_mb=64, timeout_s=1, architectures="/é/t.yaml")
    assert msgspec.json.decode(msgspec.json.encode(limits), type=Limits) == limits


def test_the_zygotes_modules_include_no_torch_and_no_numpy() -> None:
    """The table must not have brought anything heavy along."""
    code = "import sys, ckptd.daemon.zygote, ckptd.catalog.describe; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([*ZYGOTE_COMMAND[:-2], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
