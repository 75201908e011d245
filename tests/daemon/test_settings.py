"""Settings: precedence, ranges, and messages that name the setting, the value, its origin and the remedy."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.setting_docs import setting_docs
from ckptd.daemon.setting_types import Access, Sidecars
from ckptd.daemon.settings import Settings, default_state_dir
from ckptd.daemon.settings_loader import SettingsError, load_settings


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path):
    config = write(tmp_path / "c.yaml", "port: 1\nquiet_s: 3\nheartbeat_s: 4\n")
    settings = load_settings({"port": 3}, {"CKPTD_PORT": "2", "CKPTD_QUIET_S": "5"}, config)
    assert (settings.port, settings.quiet_s, settings.heartbeat_s) == (3, 5, 4)
    assert settings.config == config


def test_the_file_can_be_named_by_the_environment(tmp_path):
    config = write(tmp_path / "c.yaml", "port: 7\n")
    assert load_settings({}, {"CKPTD_CONFIG": config}).port == 7


def test_flags_that_were_not_given_and_empty_variables_leave_the_default():
    assert load_settings({"port": None}, {"CKPTD_PORT": ""}).port == 8765


def test_paths_in_the_environment_are_separated_by_colons_other_lists_by_commas():
    env = {"CKPTD_ROOTS": "/a,b:/c d", "CKPTD_SUFFIXES": ".ckpt, .pt"}
    settings = load_settings({}, env)
    assert settings.roots == ("/a,b", "/c d")
    assert settings.suffixes == (".ckpt", ".pt")


def test_yaml_takes_lists_single_words_dashes_and_the_bare_word_off(tmp_path):
    config = write(tmp_path / "c.yaml", "roots: /data\nsuffixes: [.ckpt, .pth]\nsidecars: off\nexport-index: no\n")
    settings = load_settings({}, {}, config)
    assert settings.roots == ("/data",)
    assert settings.suffixes == (".ckpt", ".pth")
    assert settings.sidecars is Sidecars.OFF
    assert settings.export_index is False


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        ({"port": 70000}, {}, ["port", "70000", "--port", "65535", "8765"]),
        ({}, {"CKPTD_PORT": "http"}, ["port", "'http'", "CKPTD_PORT", "integer"]),
        ({}, {"CKPTD_SWEEP_CPU": "nan"}, ["sweep_cpu", "CKPTD_SWEEP_CPU"]),
        ({"sweep_cpu": 0}, {}, ["sweep_cpu", "greater than 0"]),
        ({"suffixes": ["ckpt"]}, {}, ["suffixes", "'ckpt'", ".ckpt"]),
        ({"verify": "twice"}, {}, ["verify", "'twice'", "structure"]),
        ({"cors_origins": ["*"]}, {}, ["cors_origins", "'*'", "https://"]),
        ({"roots": []}, {}, ["roots", "at least 1"]),
        ({"roots": [""]}, {}, ["roots", "empty"]),
        ({"root_path": "ckptd"}, {}, ["root_path", "'ckptd'"]),
        ({"allow_anonymous": True, "access": "token"}, {}, ["allow_anonymous", "access", "leave one"]),
        ({"abandoned_s": 1}, {}, ["abandoned_s", "quiet_s"]),
        ({"worker_memory_mb": "lots"}, {}, ["worker_memory_mb", "'lots'"]),
        ({"log_level": "trace"}, {}, ["log_level", "'trace'", "warning"]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_value_origin_and_remedy(flags, env, words):
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, env)
    for word in words:
        assert word in str(caught.value)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(SettingsError) as caught:
        load_settings({"port": -1, "heartbeat_s": 0}, {"CKPTD_ACCESS": "open"})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["port", "access", "heartbeat_s"]


def test_an_unknown_key_in_the_file_is_an_error_that_suggests_the_known_one(tmp_path):
    config = write(tmp_path / "c.yaml", "hartbeat_s: 3\nzzz: 1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {}, config)
    first, second = caught.value.problems
    assert "hartbeat_s" in first
    assert config in first
    assert "did you mean heartbeat_s?" in first
    assert "zzz" in second
    assert "--help" in second


@pytest.mark.parametrize(
    ("text", "word"),
    [("port: [", "not valid YAML"), ("- port", "list"), ("config: other.yaml", "names another"), ("\x00", "YAML")],
)
def test_a_file_that_is_no_settings_file_is_refused_by_name(tmp_path, text, word):
    config = write(tmp_path / "c.yaml", text)
    with pytest.raises(SettingsError, match=word) as caught:
        load_settings({}, {}, config)
    assert config in str(caught.value)


def test_a_missing_file_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"/nowhere\.yaml cannot be read"):
        load_settings({}, {}, "/nowhere.yaml")


def test_an_empty_file_sets_nothing(tmp_path):
    assert load_settings({}, {}, write(tmp_path / "c.yaml", "# nothing\n")).port == 8765


def test_a_root_that_is_a_file_is_refused(tmp_path):
    path = write(tmp_path / "f", "")
    with pytest.raises(SettingsError, match="not a directory"):
        load_settings({"roots": [path]}, {})


def test_the_state_lives_with_systemd_or_under_the_hash_of_the_resolved_roots(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    env = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    by_name = load_settings({"roots": [str(tmp_path / "a")]}, env).state_dir
    by_link = load_settings({"roots": [str(tmp_path / "link")]}, env).state_dir
    assert by_name == by_link
    assert os.path.dirname(by_name) == str(tmp_path / "state" / "ckptd")
    assert load_settings({}, env | {"STATE_DIRECTORY": "/var/lib/ckptd"}).state_dir == "/var/lib/ckptd"
    assert default_state_dir([str(tmp_path / "b")], env) != by_name
    assert default_state_dir(["x"], {"HOME": "/h"}).startswith("/h/.local/state/ckptd/")


def test_a_systemd_credential_serves_as_token_file_unless_one_is_set(tmp_path):
    credential = write(tmp_path / "ckptd.token", "secret")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load_settings({}, env).token_file == credential
    assert load_settings({"token_file": "/t"}, env).token_file == "/t"


def test_paths_of_our_own_files_are_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"state_dir": "s", "port_file": "p"}, {})
    monkeypatch.chdir("/")
    assert settings.state_dir == str(tmp_path / "s")
    assert settings.port_file == str(tmp_path / "p")


def test_constructing_settings_reads_no_ckptd_variable(monkeypatch):
    monkeypatch.setenv("CKPTD_PORT", "1")
    assert Settings(roots=("x",)).port == 8765


def test_settings_cannot_be_changed():
    settings = Settings(access=Access.TOKEN)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@given(
    st.dictionaries(
        st.sampled_from([doc.name for doc in setting_docs()]) | st.text(max_size=8),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.text(max_size=4)),
        max_size=4,
    )
)
def test_any_flags_give_settings_or_a_settings_error(flags):
    flags.pop("config", None)
    try:
        settings = load_settings(flags, {"HOME": "/h"})
    except SettingsError as error:
        problems = error.problems
    else:
        problems = ("none",)
        assert all(getattr(settings, name) is not None for name, value in flags.items() if value is not None)
    assert all(problems)


def test_every_setting_is_described_and_its_unit_is_in_name_and_words():
    units = {"_s": "second", "_ms": "ms", "_mb": "MB", "_days": "days"}
    for doc in setting_docs():
        assert doc.description, doc.name
        for suffix, word in units.items():
            if doc.name.endswith(suffix) and not doc.name.endswith("_per_s"):
                assert word in doc.description, doc.name
