"""The command line: exit codes, forms of the answer, and what is never written."""

import json
import os
import subprocess
import sys

import pytest

from ckptd.catalog.roots import Root
from ckptd.daemon.rootlock import RootLock
from tests.daemon.command_line import CKPTD, ckptd, ckptd_json, damage, environment, save

COMMANDS = ("serve", "ls", "show", "validate", "metadata", "index", "watch", "rebuild", "token")


# ---- the frame -----------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_every_exit_code(tmp_path):
    result = ckptd("--help", home=tmp_path)
    assert result.returncode == 0
    for word in (*COMMANDS, "exit codes", "usage", "environment"):
        assert word in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_json(tmp_path, command):
    result = ckptd(command, "--help", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "exit codes" in result.stdout
    if command != "index":
        assert "--json" in result.stdout


def test_help_imports_neither_the_settings_model_nor_the_server_nor_torch(tmp_path):
    code = (
        "import sys\nfrom ckptd.daemon.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stderr.split("\n"))
    assert not loaded & {"pydantic", "starlette", "uvicorn", "rich", "structlog", "msgspec", "torch"}


def test_serving_never_imports_torch():
    code = "import ckptd.daemon.server, sys; assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_installed_one(tmp_path):
    from importlib.metadata import version

    assert ckptd("--version", home=tmp_path).stdout == f"ckptd {version('ckptd')}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["validate"], ["ls", "--nonsense"], ["serve", "--port", "http"]]
)
def test_wrong_usage_exits_2_and_says_why(tmp_path, arguments):
    result = ckptd(*arguments, home=tmp_path)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_every_setting_is_a_flag_of_serve(tmp_path):
    from ckptd.daemon.settings import setting_docs

    shown = ckptd("serve", "--help", home=tmp_path).stdout
    for doc in setting_docs():
        assert f"--{doc.name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["a", "b"], {"roots": ("a", "b")}),
        (["--roots", "a", "b", "--port", "0"], {"roots": ("a", "b"), "port": 0}),
        (["a", "--no-export-index", "--sidecars", "off"], {"export_index": False, "sidecars": "off"}),
        (["--export-index", "--suffixes", ".ckpt", ".pt"], {"export_index": True, "suffixes": (".ckpt", ".pt")}),
        (["--allow-anonymous"], {"allow_anonymous": True}),
    ],
)
def test_flags_of_every_kind_reach_the_settings(flags, expected, monkeypatch):
    import argparse

    from ckptd.daemon.commands import serve
    from ckptd.daemon.commands.flags import settings_from

    monkeypatch.delenv("CKPTD_CONFIG", raising=False)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    settings = settings_from(parser.parse_args(flags))
    assert {name: getattr(settings, name) for name in expected} == expected


# ---- validate ------------------------------------------------------------------------------------------------------


def test_validate_exits_0_when_all_is_well_and_tells_each_in_a_line(tmp_path):
    save(tmp_path / "run" / "a.ckpt")
    save(tmp_path / "run" / "b.ckpt")
    result = ckptd("validate", "run", home=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [("run/a.ckpt", "valid"), ("run/b.ckpt", "valid")]
    assert "2 checkpoints: 2 valid, 0 invalid" in result.stderr


def test_validate_exits_1_for_a_damaged_file_and_says_what_to_do(tmp_path):
    save(tmp_path / "good.ckpt")
    damage(save(tmp_path / "bad.ckpt"))
    result = ckptd("validate", "good.ckpt", "bad.ckpt", home=tmp_path)
    assert result.returncode == 1
    assert "bad.ckpt\tinvalid" in result.stdout
    assert "bad.ckpt: error: archive." in result.stderr
    assert "good.ckpt\tvalid" in result.stdout


def test_validate_as_json_carries_findings_with_remedies(tmp_path):
    save(tmp_path / "good.ckpt", epoch=7)
    damage(save(tmp_path / "bad.ckpt"))
    answer = ckptd_json("validate", tmp_path, home=tmp_path, status=1)
    assert (answer["valid"], answer["invalid"]) == (1, 1)
    bad, good = answer["checkpoints"]
    assert good["is_valid"]
    assert (good["epoch"], good["n_parameters"]) == (7, 32)
    assert bad["findings"][0]["severity"] == "error"
    assert bad["findings"][0]["remedy"]


def test_validate_in_process_says_the_same_as_the_workers(tmp_path):
    save(tmp_path / "good.ckpt")
    damage(save(tmp_path / "bad.ckpt"))
    pooled = ckptd_json("validate", tmp_path, home=tmp_path, status=1)
    alone = ckptd_json("validate", tmp_path, "--in-process", home=tmp_path, status=1)
    assert pooled == alone


def test_validate_takes_a_named_file_whatever_its_suffix_and_names_that_are_not_utf8(tmp_path):
    save(tmp_path / "weights.bin")
    path = os.fsencode(save(tmp_path / "x.ckpt"))
    os.rename(path, os.path.dirname(path) + b"/\xff.ckpt")
    result = ckptd("validate", "weights.bin", ".", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "weights.bin\tvalid" in result.stdout
    assert "\\xff.ckpt\tvalid" in result.stdout
    assert len(ckptd_json("validate", ".", home=tmp_path)["checkpoints"]) == 1


def test_validate_at_level_checksum_finds_what_structure_cannot_see(tmp_path):
    path = save(tmp_path / "flipped.ckpt")
    save(tmp_path / "good.ckpt")
    data = bytearray(path.read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 16)] ^= 1  # the ones of a tensor
    path.write_bytes(data)
    assert ckptd("validate", ".", home=tmp_path).returncode == 0
    result = ckptd("validate", ".", "--level", "checksum", home=tmp_path)
    assert result.returncode == 1
    lines = [line.split("\t")[:3] for line in result.stdout.splitlines()]
    assert lines == [["flipped.ckpt", "invalid", "checksum"], ["good.ckpt", "valid", "checksum"]]
    assert "archive.checksum_mismatch: record data/0, the data of tensor state_dict.encoder.weight" in result.stderr
    documents = ckptd_json("validate", "good.ckpt", "--level", "checksum", home=tmp_path)["checkpoints"]
    assert documents[0]["digest"].startswith("blake2b:")


def test_validate_refuses_a_level_that_is_not_there_with_exit_code_2(tmp_path):
    save(tmp_path / "good.ckpt")
    result = ckptd("validate", "good.ckpt", "--level", "weights", home=tmp_path)
    assert result.returncode == 2
    assert "'structure', 'checksum'" in result.stderr or "structure, checksum" in result.stderr


def test_validate_of_nothing_exits_2(tmp_path):
    result = ckptd("validate", "nowhere.ckpt", home=tmp_path)
    assert result.returncode == 2
    assert "'nowhere.ckpt' does not exist" in result.stderr


def test_a_reader_that_has_read_enough_ends_the_command_quietly(tmp_path):
    for number in range(40):
        save(tmp_path / f"{number}.ckpt")
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [CKPTD, "validate", str(tmp_path)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        timeout=50,
        check=False,
    )
    os.close(writing)
    assert result.returncode == 141
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


# ---- metadata ------------------------------------------------------------------------------------------------------


def test_metadata_writes_what_is_missing_and_a_second_run_finds_nothing_to_do(tmp_path):
    save(tmp_path / "exp" / "checkpoints" / "a.ckpt")
    first = ckptd_json("metadata", tmp_path, home=tmp_path)
    assert first["counts"] == {"written": 1}
    sidecar = tmp_path / "exp" / "checkpoints" / "a.ckpt.metadata.yaml"
    assert "schema_version" in sidecar.read_text()
    written = sidecar.stat()
    second = ckptd_json("metadata", tmp_path, home=tmp_path)
    assert second["counts"] == {"current": 1}
    assert sidecar.stat().st_mtime_ns == written.st_mtime_ns


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(tmp_path):
    save(tmp_path / "tree" / "a.ckpt")
    result = ckptd("metadata", "tree", "--dry-run", home=tmp_path)
    assert result.returncode == 0
    assert "tree/a.ckpt\twould write" in result.stdout
    assert os.listdir(tmp_path / "tree") == ["a.ckpt"]


def test_metadata_writes_nothing_about_an_invalid_file_and_exits_1(tmp_path):
    damage(save(tmp_path / "tree" / "a.ckpt"))
    answer = ckptd_json("metadata", tmp_path / "tree", home=tmp_path, status=1)
    assert answer["counts"] == {"invalid checkpoint": 1}
    assert os.listdir(tmp_path / "tree") == ["a.ckpt"]


@pytest.mark.parametrize("text", ["schema_version: '1.0'\nexp_name: mine\n", "{ not: yaml"])
def test_what_a_person_wrote_is_kept(tmp_path, text):
    save(tmp_path / "tree" / "a.ckpt")
    sidecar = tmp_path / "tree" / "a.ckpt.metadata.yaml"
    sidecar.write_text(text)
    result = ckptd("metadata", "tree", home=tmp_path)
    assert result.returncode == 0
    assert sidecar.read_text() == text


def test_repair_replaces_an_unreadable_one_and_keeps_it_and_its_predecessor_as_bak(tmp_path):
    save(tmp_path / "tree" / "a.ckpt")
    sidecar = tmp_path / "tree" / "a.ckpt.metadata.yaml"
    sidecar.with_name(sidecar.name + ".bak").write_text("older")
    sidecar.write_text("{ not: yaml")
    answer = ckptd_json("metadata", tmp_path / "tree", "--repair", home=tmp_path)
    assert answer["counts"] == {"written": 1}
    assert sidecar.with_name(sidecar.name + ".bak").read_text() == "older"
    assert sidecar.with_name(sidecar.name + ".bak1").read_text() == "{ not: yaml"
    assert "schema_version" in sidecar.read_text()


@pytest.mark.parametrize("below", [False, True])
def test_metadata_leaves_a_tree_alone_that_a_daemon_writes(tmp_path, below):
    """Also when only a part of the daemon's tree is named."""
    save(tmp_path / "tree" / "exp" / "a.ckpt")
    lock = RootLock(Root(os.fsencode(tmp_path / "tree")))
    assert lock.held()
    try:
        result = ckptd("metadata", "tree/exp" if below else "tree", home=tmp_path)
    finally:
        lock.release()
    assert result.returncode == 3
    assert "daemon" in result.stderr
    assert os.listdir(tmp_path / "tree" / "exp") == ["a.ckpt"]


def test_the_short_name_can_be_chosen(tmp_path):
    save(tmp_path / "tree" / "a.ckpt")
    assert ckptd("metadata", "tree", "--sidecar-name", "short", home=tmp_path).returncode == 0
    assert (tmp_path / "tree" / "a.metadata.yaml").exists()


# ---- index ---------------------------------------------------------------------------------------------------------


def test_the_index_is_verified_as_missing_then_current_then_different(tmp_path):
    save(tmp_path / "tree" / "exp" / "checkpoints" / "a.ckpt")
    assert ckptd("index", "verify", "tree", home=tmp_path).returncode == 1
    assert ckptd("index", "rebuild", "tree", home=tmp_path).returncode == 0
    assert json.loads((tmp_path / "tree" / ".checkpoint_index.json").read_text())["version"] == "2.0"
    assert ckptd("index", "verify", "tree", home=tmp_path).returncode == 0
    save(tmp_path / "tree" / "exp" / "checkpoints" / "b.ckpt")
    (tmp_path / "tree" / "exp" / "checkpoints" / "a.ckpt").unlink()
    result = ckptd("index", "verify", "tree", home=tmp_path)
    assert result.returncode == 1
    assert "missing\t" in result.stdout
    assert "b.ckpt" in result.stdout
    assert "extra\t" in result.stdout
    assert "a.ckpt" in result.stdout


# ---- commands that need a daemon -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["ls"], ["show", "x.ckpt"], ["watch"], ["rebuild"], ["token"]])
def test_without_a_daemon_the_message_says_how_to_start_one(tmp_path, command):
    result = ckptd(*command, home=tmp_path)
    assert result.returncode == 3
    assert "ckptd serve" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_url_where_nobody_listens_exits_3(tmp_path):
    result = ckptd("ls", home=tmp_path, CKPTD_URL="http://127.0.0.1:1")
    assert result.returncode == 3
    assert "http://127.0.0.1:1" in result.stderr
