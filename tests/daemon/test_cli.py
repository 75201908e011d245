"""The command line: exit codes, forms of the answer, and what is never written."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from xml.etree import ElementTree as ET

import pytest
import torch

from ckptd.catalog.roots import Root
from ckptd.daemon.commands import output
from ckptd.daemon.commands.junit import render_junit
from ckptd.daemon.rootlock import RootLock
from ckptd.validators.findings import Severity
from tests.daemon.command_line import CKPTD, TIMEOUT_S, ckptd, ckptd_afresh, ckptd_json, damage, environment, save
from tests.faults.campaign import put
from tests.faults.subjects import subjects

COMMANDS = ("serve", "ls", "show", "diff", "validate", "metadata", "index", "watch", "rebuild", "token")


# ---- the frame -----------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_every_exit_code(tmp_path):
    result = ckptd_afresh("--help", home=tmp_path)
    assert result.returncode == 0
    for word in (*COMMANDS, "exit codes", "usage", "environment"):
        assert word in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_json(tmp_path, command):
    result = ckptd_afresh(command, "--help", home=tmp_path)
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

    assert ckptd_afresh("--version", home=tmp_path).stdout == f"ckptd {version('ckptd')}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["validate"], ["ls", "--nonsense"], ["serve", "--port", "http"]]
)
def test_wrong_usage_exits_2_and_says_why(tmp_path, arguments):
    result = ckptd(*arguments, home=tmp_path)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_these_tests_fork_tells_and_ends_as_a_fresh_one_does(tmp_path):
    damage(save(tmp_path / "bad.ckpt"))
    for arguments in (["validate", "."], ["ls"], ["frobnicate"], ["index", "verify", ".", "--json"]):
        forked, fresh = ckptd(*arguments, home=tmp_path), ckptd_afresh(*arguments, home=tmp_path)
        assert vars(forked) == vars(fresh)


def test_every_setting_is_a_flag_of_serve(tmp_path):
    from ckptd.daemon.setting_docs import setting_docs

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
    result = ckptd_afresh("validate", "run", home=tmp_path)
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
    assert "error: archive.incomplete: 1 checkpoint; wait for the writer" in result.stderr
    assert "  bad.ckpt: the archive has no end record" in result.stderr
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
    assert "  flipped.ckpt: record data/0, the data of tensor state_dict.encoder.weight" in result.stderr
    documents = ckptd_json("validate", "good.ckpt", "--level", "checksum", home=tmp_path)["checkpoints"]
    assert documents[0]["digest"].startswith("blake3:")


def test_validate_refuses_a_level_that_is_not_there_with_exit_code_2(tmp_path):
    save(tmp_path / "good.ckpt")
    result = ckptd("validate", "good.ckpt", "--level", "none", home=tmp_path)
    assert result.returncode == 2
    assert "'structure', 'checksum'" in result.stderr or "structure, checksum" in result.stderr


def test_validate_at_level_weights_names_the_numbers_that_are_none(tmp_path):
    save(tmp_path / "good.ckpt")
    torch.save({"state_dict": {"w": torch.tensor([[1.0, float("nan")]])}}, tmp_path / "nan.ckpt")
    result = ckptd("validate", ".", "--level", "weights", home=tmp_path)
    assert result.returncode == 1, result.stderr
    lines = [line.split("\t")[:3] for line in result.stdout.splitlines()]
    assert lines == [["good.ckpt", "valid", "weights"], ["nan.ckpt", "invalid", "weights"]]
    assert "1 value of tensor state_dict.w is not finite (1 NaN), the first at index [0, 1]" in result.stderr


def test_validate_at_level_weights_says_that_torch_is_missing_with_exit_code_3(tmp_path):
    save(tmp_path / "good.ckpt")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise ModuleNotFoundError('no torch here', name='torch')")
    arguments = ("validate", "good.ckpt", "--level", "weights", "--in-process")
    result = ckptd(*arguments, home=tmp_path, PYTHONPATH=str(tmp_path / "path"))
    assert result.returncode == 3, result.stderr
    assert "pip install 'ckptd[torch]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere.ckpt", "'nowhere.ckpt' does not exist"),
        ("runs/**/*.ckpt", "nothing matches 'runs/**/*.ckpt'"),
        ("*.metadata.yaml", "matches no checkpoint, only other files"),
    ],
)
def test_validate_of_nothing_exits_2(tmp_path, path, says):
    (tmp_path / "gone.ckpt.metadata.yaml").write_text("{}")
    result = ckptd("validate", path, home=tmp_path)
    assert result.returncode == 2
    assert says in result.stderr


def told_by(result):
    """Path → verdict, of each line in a pipe."""
    return dict(line.split("\t")[:2] for line in result.stdout.splitlines())


def test_validate_expands_a_quoted_glob_and_leaves_companions_and_dead_links_out(tmp_path):
    for name in ("runs/a/best.ckpt", "runs/a/deep/er/last.ckpt", "runs/b/best.ckpt", "runs/b/weights.bin"):
        save(tmp_path / name)
    (tmp_path / "runs/a/best.ckpt.metadata.yaml").write_text("schema_version: '1.0'\n")
    (tmp_path / "runs/b/config.yaml").write_text("exp_name: b\n")
    (tmp_path / "runs/b/dead.ckpt").symlink_to("gone.ckpt")
    assert told_by(ckptd("validate", "runs/*/best.ckpt", home=tmp_path)) == {
        "runs/a/best.ckpt": "valid",
        "runs/b/best.ckpt": "valid",
    }
    assert list(told_by(ckptd("validate", "runs/b/*", home=tmp_path))) == ["runs/b/best.ckpt"]
    assert list(told_by(ckptd("validate", "runs/b/*e*", home=tmp_path))) == ["runs/b/best.ckpt", "runs/b/weights.bin"]
    everything = ckptd("validate", "runs/**", home=tmp_path)
    assert everything.returncode == 0, everything.stderr
    assert set(told_by(everything)) == {
        "runs/a/best.ckpt",
        "runs/a/deep/er/last.ckpt",
        "runs/b/best.ckpt",
    }
    assert len(everything.stdout.splitlines()) == 3, "what is matched twice is told once"


@pytest.mark.parametrize("path", ["outputs", "outputs/a/checkpoints/best.ckpt", "outputs/**/*.ckpt"])
def test_the_config_of_a_run_is_found_however_its_checkpoint_is_named(tmp_path, path):
    save(tmp_path / "outputs/a/checkpoints/best.ckpt")
    (tmp_path / "outputs/a/config.yaml").write_text("exp_name: a\n")
    (document,) = ckptd_json("validate", path, home=tmp_path)["checkpoints"]
    assert "config.missing" not in [found["code"] for found in document["findings"]]


def test_what_exists_under_its_literal_name_is_no_glob(tmp_path):
    save(tmp_path / "lr=[0.1].ckpt")
    save(tmp_path / "lr=0.ckpt")
    assert told_by(ckptd("validate", "lr=[0.1].ckpt", home=tmp_path)) == {"lr=[0.1].ckpt": "valid"}
    assert told_by(ckptd("validate", "lr=[0-9].ckpt", home=tmp_path)) == {"lr=0.ckpt": "valid"}


def test_what_was_found_is_grouped_with_its_remedy_once(tmp_path):
    for number in range(3):
        damage(save(tmp_path / f"cut{number}.ckpt"))
    (tmp_path / "page.ckpt").write_text("<html></html>")
    result = ckptd("validate", ".", home=tmp_path)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(";")[0] for line in errors] == [
        "error: archive.incomplete: 3 checkpoints",
        "error: format.not_a_checkpoint: 1 checkpoint",
    ]
    assert result.stderr.count("fetch the real file again") == 1
    named = [line.split(":")[0].strip() for line in result.stderr.split("warning:")[0].splitlines() if line[0] == " "]
    assert named == [*(f"cut{number}.ckpt" for number in range(3)), "page.ckpt"]
    grouped = ckptd_json("validate", ".", home=tmp_path, status=1)["findings"]
    assert grouped["archive.incomplete"]["checkpoints"] == 3


def test_a_warning_of_many_checkpoints_does_not_name_them_all(tmp_path):
    for number in range(9):
        save(tmp_path / f"{number}.ckpt")
    result = ckptd("validate", ".", home=tmp_path)
    assert "warning: config.missing: 9 checkpoints" in result.stderr
    assert "  and 4 more; --json names them all" in result.stderr


def test_only_invalid_leaves_out_what_is_well_and_counts_it(tmp_path):
    save(tmp_path / "good.ckpt")
    damage(save(tmp_path / "bad.ckpt"))
    result = ckptd("validate", ".", "--only-invalid", home=tmp_path)
    assert told_by(result) == {"bad.ckpt": "invalid"}
    assert "2 checkpoints: 1 valid, 1 invalid" in result.stderr
    assert "warning" not in result.stderr
    document = ckptd_json("validate", ".", "--only-invalid", home=tmp_path, status=1)
    assert [os.path.basename(each["checkpoint_path"]) for each in document["checkpoints"]] == ["bad.ckpt"]
    assert (document["valid"], document["invalid"]) == (1, 1)


def test_warnings_count_where_asked(tmp_path):
    save(tmp_path / "good.ckpt")
    assert ckptd("validate", "good.ckpt", home=tmp_path).returncode == 0
    result = ckptd("validate", "good.ckpt", "--fail-on", "warning", home=tmp_path)
    assert result.returncode == 1, "it has no config beside it, which is a warning"
    assert "1 valid, 0 invalid; 1 failed by --fail-on warning" in result.stderr


def test_the_number_of_jobs_is_checked_like_the_setting(tmp_path):
    save(tmp_path / "good.ckpt")
    assert ckptd("validate", "good.ckpt", "--jobs", "1", home=tmp_path).returncode == 0
    result = ckptd("validate", "good.ckpt", "-j", "none", home=tmp_path)
    assert result.returncode == 2
    assert "workers" in result.stderr


def test_keys_that_are_required_are_looked_for_in_each(tmp_path):
    save(tmp_path / "whole.ckpt", names=("model.encoder.weight", "model.head.bias"))
    save(tmp_path / "part.ckpt", names=("model.encoder.weight", "model.neck.bias"))
    required = ("--require", "model.encoder", "--require", "model.head")
    result = ckptd("validate", ".", *required, home=tmp_path)
    assert result.returncode == 1
    assert told_by(result) == {"part.ckpt": "invalid", "whole.ckpt": "valid"}
    assert "error: state_dict.required_keys: 1 checkpoint" in result.stderr
    documents = ckptd_json("validate", ".", *required, home=tmp_path, status=1)["checkpoints"]
    assert [each["architecture_valid"] for each in documents] == [False, True]


def test_a_checkpoint_that_is_a_directory_is_one_and_its_parts_are_none(tmp_path):
    deepspeed = next(subject for subject in subjects() if subject.name == "DeepSpeed directory")
    path = put(tmp_path / "run", deepspeed, deepspeed.members)
    save(tmp_path / "run" / "beside.ckpt")
    name = str(path.relative_to(tmp_path))
    for arguments in (["run"], ["run/**"], ["run/*"], [name, "run/beside.ckpt"]):
        assert told_by(ckptd("validate", *arguments, home=tmp_path)) == {"run/beside.ckpt": "valid", name: "valid"}
    part = f"{name}/mp_rank_00_model_states.pt"
    assert told_by(ckptd("validate", part, home=tmp_path)) == {part: "valid"}, "unless it is named itself"
    (tmp_path / part).unlink()
    result = ckptd("validate", name, home=tmp_path)
    assert told_by(result) == {name: "invalid"}
    assert "error: shards.incomplete: 1 checkpoint" in result.stderr


def test_many_files_are_told_in_order_with_the_bad_ones_among_them(tmp_path):
    """More than are opened in one go; one cannot be opened, one is cut off."""
    good = save(tmp_path / "000.ckpt").read_bytes()
    for number in range(1, 100):
        (tmp_path / f"{number:03}.ckpt").write_bytes(good[:700] if number == 40 else good)
    os.unlink(tmp_path / "070.ckpt")
    os.mkfifo(tmp_path / "070.ckpt")
    result = ckptd("validate", *(f"{number:03}.ckpt" for number in range(100)), home=tmp_path)
    assert result.returncode == 1
    verdicts = told_by(result)
    assert list(verdicts) == [f"{number:03}.ckpt" for number in range(100)]
    assert [name for name, verdict in verdicts.items() if verdict == "invalid"] == ["040.ckpt", "070.ckpt"]
    assert "  070.ckpt: the file cannot be opened" in result.stderr


def on_a_terminal(*arguments, home):
    """Run with a terminal of 200 columns for all output; the exit code, and what was shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        [CKPTD, *arguments], stdout=theirs, stderr=theirs, cwd=home, env=environment(home, TERM="xterm")
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed its side
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    return process.wait(TIMEOUT_S), shown.decode()


@pytest.mark.parametrize("level", ["structure", "checksum"])
def test_on_a_terminal_there_is_a_table_and_a_bar_that_is_gone_at_the_end(tmp_path, level):
    for number in range(3):
        save(tmp_path / f"{number}.ckpt")
    damage(save(tmp_path / "bad.ckpt"))
    status, shown = on_a_terminal("validate", ".", "--level", level, home=tmp_path)
    assert status == 1
    assert "Traceback" not in shown
    table = shown[shown.index("checkpoint") :]
    assert [line.split()[:2] for line in table.splitlines() if ".ckpt  " in line] == [
        ["0.ckpt", "valid"],
        ["1.ckpt", "valid"],
        ["2.ckpt", "valid"],
        ["bad.ckpt", "invalid"],
    ]
    assert "validating" not in table
    assert "4 checkpoints: 3 valid, 1 invalid" in table


def test_a_long_table_lines_up_as_a_short_one_does(monkeypatch, capsys):
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setattr(output, "LONG_TABLE", 2)
    rows = [("a.ckpt", 1, None), ("b/long.ckpt", 20_000, "x"), ("esc\x1b.ckpt", 3, "y")]
    output.print_table(("checkpoint", "parameters", "findings"), rows, ("parameters",))
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint    parameters  findings",
        "a.ckpt                 1",
        "b/long.ckpt        20000  x",
        "esc\\x1b.ckpt           3  y",
    ]


# ---- validate --junit ----------------------------------------------------------------------------------------------


def read_junit(data):
    """Check a report against the elements that readers share (junit-10.xsd of Jenkins' xUnit); its cases by name."""
    root = ET.fromstring(data)
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    assert {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"} <= set(suite.attrib)
    cases = list(suite)
    for case in cases:
        assert case.tag == "testcase"
        assert set(case.attrib) == {"name", "classname"}
        assert [child.tag for child in case] in ([], ["failure"], ["error"], ["system-out"], ["failure", "system-out"])
    for tag in ("failure", "error"):
        assert int(suite.attrib[tag + "s"]) == len(suite.findall(f"testcase/{tag}")) == int(root.attrib[tag + "s"])
    assert int(suite.attrib["tests"]) == len(cases) == int(root.attrib["tests"])
    return {(case.get("classname"), case.get("name")): case for case in cases}


def test_the_junit_report_has_a_case_for_each_checkpoint_with_code_message_and_remedy(tmp_path):
    save(tmp_path / "runs" / "a" / "good.ckpt")
    damage(save(tmp_path / "runs" / "a" / "bad.ckpt"))
    result = ckptd("validate", "runs", "--junit", "report.xml", home=tmp_path)
    assert result.returncode == 1
    assert len(told_by(result)) == 2, "the lines are told as well"
    cases = read_junit((tmp_path / "report.xml").read_bytes())
    assert set(cases) == {("runs/a", "good.ckpt"), ("runs/a", "bad.ckpt")}
    assert cases["runs/a", "good.ckpt"].find("failure") is None
    failure = cases["runs/a", "bad.ckpt"].find("failure")
    assert failure.get("type") == "archive.incomplete"
    assert "no end record" in failure.get("message")
    assert failure.text.startswith("error: archive.incomplete: the archive")
    assert "wait for the writer to finish" in failure.text


def test_the_junit_report_goes_to_standard_output_alone(tmp_path):
    save(tmp_path / "good.ckpt")
    result = ckptd("validate", ".", "--junit", "-", home=tmp_path)
    assert result.returncode == 0
    assert list(read_junit(result.stdout.encode())) == [(".", "good.ckpt")]
    assert ckptd("validate", ".", "--junit", "-", "--json", home=tmp_path).returncode == 2


def test_a_report_that_cannot_be_written_is_known_before_the_work_begins(tmp_path):
    save(tmp_path / "good.ckpt")
    result = ckptd("validate", ".", "--junit", "no/such/directory.xml", home=tmp_path)
    assert result.returncode == 3
    assert "no/such/directory.xml" in result.stderr
    assert not result.stdout


def test_names_and_messages_that_xml_cannot_hold_are_escaped(tmp_path):
    """A file may be named by any bytes but two, and its tensors by any characters at all."""
    path = os.fsencode(save(tmp_path / "x.ckpt"))
    os.rename(path, os.path.dirname(path) + b'/\xff\x1b]0;\n<&".ckpt')
    odd = "w\x00\x1b\ud800\uffff\U0001f600<![CDATA["
    torch.save({"state_dict": {odd: torch.ones(3)}}, tmp_path / "odd.ckpt")
    data = bytearray((tmp_path / "odd.ckpt").read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 3)] ^= 1
    (tmp_path / "odd.ckpt").write_bytes(data)
    result = ckptd("validate", ".", "--level", "checksum", "--junit", "report.xml", home=tmp_path)
    assert result.returncode == 1
    cases = read_junit((tmp_path / "report.xml").read_bytes())
    assert (".", '\\xff\\x1b]0;\\n<&".ckpt') in cases
    failure = cases[".", "odd.ckpt"].find("failure")
    assert failure.get("type") == "archive.checksum_mismatch"
    assert "state_dict.w" in failure.text
    assert "<![CDATA[" in failure.text


def test_a_directory_that_cannot_be_looked_at_is_an_error_of_the_report():
    report = render_junit([], ["/outputs/a: cannot be looked at (EIO)"], fail_on=Severity.ERROR, started_at=0, took_s=1)
    (case,) = read_junit(report).values()
    assert case.find("error").get("message") == "/outputs/a: cannot be looked at (EIO)"


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
    first = ckptd_json("metadata", tmp_path, home=tmp_path, run=ckptd_afresh)
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
    assert ckptd_afresh("index", "verify", "tree", home=tmp_path).returncode == 1
    assert ckptd_afresh("index", "rebuild", "tree", home=tmp_path).returncode == 0
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
    result = ckptd_afresh(*command, home=tmp_path)
    assert result.returncode == 3
    assert "ckptd serve" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_url_where_nobody_listens_exits_3(tmp_path):
    result = ckptd("ls", home=tmp_path, CKPTD_URL="http://127.0.0.1:1")
    assert result.returncode == 3
    assert "http://127.0.0.1:1" in result.stderr
