"""The units: systemd finds nothing wrong with them, and what they leave open stays within what is promised."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ckptd.daemon.settings_loader import CREDENTIAL_NAME, READ_CREDENTIAL_NAME

SYSTEMD = Path(__file__).parents[2] / "systemd"
INSTALL = Path(__file__).parents[2] / "scripts" / "install"
SERVICES = ("ckptd.service", "ckptd@.service", "ckptd-readonly.service")
SOCKETS = ("ckptd.socket", "ckptd-readonly.socket")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze; its absence fails CI and skips elsewhere."""
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have systemd-analyze: apt-get install systemd")
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env={"PATH": os.environ["PATH"]},
    )


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Its exit status says nothing of unknown keys; its silence does."""
    for name in (*SERVICES, *SOCKETS):
        # It asks for the program, which is not installed here.
        text = (SYSTEMD / name).read_text().replace("/opt/ckptd/bin/ckptd", "/bin/true")
        (tmp_path / name.replace("@.", "@someone.")).write_text(text)
    done = analyze("verify", *map(str, sorted(tmp_path.iterdir())))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "tenths"), [("ckptd.service", 12), ("ckptd@.service", 12), ("ckptd-readonly.service", 6)]
)
def test_a_unit_exposes_no_more_than_promised(name: str, tenths: int) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={tenths}", str(SYSTEMD / name))
    assert done.returncode == 0, done.stdout[-200:]


def test_a_unit_for_a_tree_in_a_home_directory_exposes_no_more(tmp_path: Path) -> None:
    """With the drop-in that scripts/install writes for it."""
    subprocess.run([INSTALL, "--destdir", tmp_path, "--root", "/home/you/outputs", "--root", "/mnt/x"], check=True)
    units = tmp_path / "etc/systemd/system"
    drop_in = (units / "ckptd.service.d/10-install.conf").read_text()
    assert 'BindPaths="-/home/you/outputs"' in drop_in
    assert 'ReadWritePaths="-/mnt/x"' in drop_in
    merged = tmp_path / "ckptd.service"
    merged.write_text((units / "ckptd.service").read_text() + drop_in)
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=12", str(merged))
    assert done.returncode == 0, done.stdout[-200:]


def test_the_units_name_the_credentials_that_the_settings_look_for() -> None:
    """Without a path: a missing file at a path would be an error, a name that is not in the store is none."""
    for name in SERVICES:
        for credential in (CREDENTIAL_NAME, READ_CREDENTIAL_NAME):
            # Each owner reads the credentials of the own instance: they must not be those of others.
            stored = f":{credential.replace('.', '-%i.', 1)}" if "@" in name else ""
            assert f"\nLoadCredential={credential}{stored}\n" in (SYSTEMD / name).read_text()


# ---- scripts/install without a machine ---------------------------------------------------------------------------


def install(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it with its messages."""
    return subprocess.run([INSTALL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=50)


def test_a_staged_installation_is_repeatable_and_removed_without_a_trace(tmp_path: Path) -> None:
    first = install("--destdir", tmp_path, "--prefix", "/srv/apps/ckptd", "--group", "ml")
    assert first.returncode == 0, first.stderr
    unit = (tmp_path / "etc/systemd/system/ckptd.service").read_text()
    assert "ExecStart=/srv/apps/ckptd/bin/ckptd serve" in unit
    assert "/opt/ckptd" not in unit
    assert "SupplementaryGroups=ml" in (tmp_path / "etc/systemd/system/ckptd.service.d/10-install.conf").read_text()
    config = tmp_path / "etc/ckptd/ckptd.yaml"
    config.write_text("roots: [/elsewhere]\n")
    again = install("--destdir", tmp_path)  # where it is, and for whom, is known by now
    assert again.stdout.count("kept ") == 8
    assert not re.search(r"^wrote", again.stdout, re.MULTILINE)
    assert config.read_text() == "roots: [/elsewhere]\n"
    assert stat.S_IMODE((tmp_path / "etc/systemd/system/ckptd.socket").stat().st_mode) == 0o644
    install("--destdir", tmp_path, "--uninstall")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [config]
    install("--destdir", tmp_path, "--uninstall", "--purge")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: Path) -> None:
    done = install("--destdir", tmp_path, "--dry-run", "--owner", "you", "--root", "/home/you/outputs", "--port", 8801)
    assert "would write /etc/systemd/system/ckptd@.service" in done.stdout
    assert "would write /etc/ckptd/you.yaml" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prefix", "/usr"], "name a directory of its own"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--port", "1"], "systemctl edit ckptd.socket"),
        (["--root", '/a"b'], "cannot be named in a unit"),
    ],
)
def test_what_cannot_end_well_is_refused_with_the_reason(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = install("--destdir", tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--owner", "nobody-by-this-name"], "there is no such user"),
        (["--group", "no-such-group"], "groupadd no-such-group"),
        (["--wheel", "/nowhere/ckptd.whl"], "there is no such file"),
        (["--owner", "nobody", "--port", "99999"], "'99999' is no port"),
    ],
)
def test_what_this_machine_does_not_have_is_refused_also_on_a_dry_run(arguments: list[str], said: str) -> None:
    done = install("--dry-run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_settings_that_cannot_be_read_are_told_in_words(tmp_path: Path) -> None:
    """By the ckptd that is in the prefix: here the one of these tests."""
    config = tmp_path / "etc/ckptd/ckptd.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("rots: [/data]\n")
    done = install("--destdir", tmp_path, "--prefix", sys.prefix)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert re.search(rf"rots: there is no such setting \(from {config}\); did you mean roots\?", done.stderr)


def test_a_dry_run_of_the_removal_needs_no_systemd_and_names_what_would_go(tmp_path: Path) -> None:
    done = install("--dry-run", "--uninstall", "--prefix", tmp_path / "nothing")
    assert (done.returncode, done.stderr) == (0, "")
    assert "would run systemctl daemon-reload" in done.stdout


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="this machine was booted by systemd")
def test_a_machine_without_systemd_is_told_so_before_anything_is_touched() -> None:
    done = install()
    assert done.returncode == 3
    assert "root" in done.stderr or "was not booted by systemd" in done.stderr
    assert done.stdout == ""
