"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest

from ckptd.daemon.cli import COMMANDS
from ckptd.daemon.setting_docs import setting_docs
from ckptd.daemon.settings_loader import load_settings
from ckptd.validators.findings import CATALOGUE

REPO = Path(__file__).parents[2]


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def test_the_readme_lists_every_setting_with_its_default():
    readme = read("README.md")
    for doc in setting_docs():
        assert f"| `{doc.name}` | {doc.default} | {doc.description} |" in readme


def test_troubleshooting_explains_every_finding_code_with_its_severity():
    rows = dict(re.findall(r"^\| `([a-z_.]+\.[a-z_.]+)` \| (\w+) \|", read("docs/troubleshooting.md"), re.MULTILINE))
    assert rows == {code: str(severity) for code, (severity, _) in CATALOGUE.items()}


def test_the_readme_names_every_command():
    readme = read("README.md")
    for command in COMMANDS:
        assert f"`ckptd {command}" in readme


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/guide.md",
        "docs/operations.md",
        "docs/streaming.md",
        "docs/training.md",
        "docs/troubleshooting.md",
        "CONTRIBUTING.md",
    ],
)
def test_every_link_leads_to_a_file_that_is_there(name):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", read(name))
    missing = [link for link in links if not ((REPO / name).parent / link).exists()]
    assert not missing


def test_the_example_configuration_shows_the_defaults(tmp_path):
    """Each commented line of the example, taken at its word, is the default."""
    example = read("systemd/ckptd.yaml")
    shown = tmp_path / "ckptd.yaml"
    shown.write_text(re.sub(r"^#(?=[a-z_]+:)", "", example, flags=re.MULTILINE), encoding="utf-8")
    env = {"STATE_DIRECTORY": str(tmp_path)}
    settings = load_settings({}, env, str(shown))
    assert settings.roots == ("/srv/outputs",)
    defaults = load_settings({"roots": settings.roots, "config": None}, env)
    assert settings.model_copy(update={"config": None}) == defaults
