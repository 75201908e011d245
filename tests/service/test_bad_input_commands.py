"""The commands on a tree of bad files: what they print reads well, and their exit codes say what was found."""

import json
import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.daemon.command_line import ckptd
from tests.service.checkpoints import checkpoint_bytes, write_in_place
from tests.service.daemons import Daemon, eventually

BLOCKED = ("directory", "fifo", "outward")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with `outputs/`, whose files are as bad as they come, and nothing running."""
    home = tmp_path_factory.mktemp("bad")
    outputs = home / "outputs"
    names = ("a.ckpt", "-rf.ckpt", "new\nline.ckpt", "esc\x1b[2J.ckpt", "sub/a.ckpt", *(f"{n}.ckpt" for n in BLOCKED))
    for seed, name in enumerate(names):
        write_in_place(outputs / name, checkpoint_bytes(seed))
    with open(os.fsencode(outputs) + b"/\xff.ckpt", "wb") as file:
        file.write(checkpoint_bytes(50))
    write_in_place(outputs / "torn.ckpt", checkpoint_bytes(51)[:500])
    write_in_place(outputs / "sub/a.ckpt.metadata.yaml", b"!!python/object:os.system\n")
    (outputs / "directory.ckpt.metadata.yaml").mkdir()
    os.mkfifo(outputs / "fifo.ckpt.metadata.yaml")
    (outputs / "outward.ckpt.metadata.yaml").symlink_to("/etc/passwd")
    (outputs / "dangling.ckpt").symlink_to("gone.ckpt")
    os.mkfifo(outputs / "odd.ckpt")
    return home


@pytest.fixture(scope="module")
def daemon(home: pathlib.Path) -> Iterator[Daemon]:
    settings = {"sidecar_delay_s": 0.1, "abandoned_s": 2}
    with Daemon(home / "outputs", home / "state", **settings) as daemon:
        eventually(lambda: len(daemon.entries()) == 11, "all are listed")
        eventually(lambda: {e["health"] for e in daemon.entries().values()} == {"valid", "invalid"}, "all are judged")
        yield daemon


def run(home: pathlib.Path, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    result = ckptd(*arguments, home=home, **({} if url is None else {"CKPTD_URL": url}))
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stdout + result.stderr, "names of files reach no terminal as commands"
    assert "udcff" not in result.stdout + result.stderr, "names are shown by their bytes"
    return result


def test_validate_tells_good_from_bad_by_name_and_exits_1(home: pathlib.Path) -> None:
    result = run(home, "validate", "outputs")
    assert result.returncode == 1
    told = dict(line.split("\t")[:2] for line in result.stdout.splitlines())
    assert told["outputs/torn.ckpt"] == "invalid"
    assert told["outputs/new\\nline.ckpt"] == told["outputs/\\xff.ckpt"] == told["outputs/-rf.ckpt"] == "valid"
    assert "outputs/odd.ckpt" not in told
    assert "error: archive.incomplete: 1 checkpoint" in result.stderr
    assert "outputs/torn.ckpt: " in result.stderr
    document = json.loads(run(home, "validate", "outputs", "--json").stdout)
    assert (document["valid"], document["invalid"]) == (len(told) - 1, 1)
    assert str(home / "outputs/\\xff.ckpt") in [each["checkpoint_path"] for each in document["checkpoints"]]


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("a.ckpt", 0, "1 valid"),
        ("odd.ckpt", 1, "not a regular file"),
        ("dangling.ckpt", 2, "link that leads nowhere"),
        ("nothing.ckpt", 2, "does not exist"),
    ],
)
def test_validate_of_one_file_says_what_it_is(home: pathlib.Path, name: str, status: int, says: str) -> None:
    result = run(home, "validate", f"outputs/{name}")
    assert result.returncode == status
    assert says in result.stderr


def test_show_prefers_the_exact_path_and_exits_1_for_what_is_invalid(home: pathlib.Path, daemon: Daemon) -> None:
    shown = run(home, "show", "a.ckpt", "--json", url=daemon.url)
    assert json.loads(shown.stdout)["path"] == "a.ckpt"
    assert shown.returncode == 0
    dangling = run(home, "show", "dangling.ckpt", url=daemon.url)
    assert dangling.returncode == 1
    assert "the link leads nowhere" in dangling.stdout
    assert run(home, "show", "torn.ckpt", url=daemon.url).returncode == 1


def test_ls_prints_one_line_for_each_whatever_its_name(home: pathlib.Path, daemon: Daemon) -> None:
    result = run(home, "ls", "--all", url=daemon.url)
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 11
    assert str(home / "outputs/new\\nline.ckpt") in result.stdout


def test_the_daemon_s_index_is_what_verify_finds(home: pathlib.Path, daemon: Daemon) -> None:
    eventually(lambda: daemon.health()["with_state_metadata"] == len(BLOCKED), "the blocked ones are in the state")

    def agrees() -> bool:
        return run(home, "index", "verify", "outputs").returncode == 0

    eventually(agrees, f"the index says what the tree says: {run(home, 'index', 'verify', 'outputs').stdout}")


def test_metadata_leaves_what_is_in_the_way_and_says_so(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "outputs"
    for name in BLOCKED:
        write_in_place(outputs / f"{name}.ckpt", checkpoint_bytes(1))
    (outputs / "directory.ckpt.metadata.yaml").mkdir()
    os.mkfifo(outputs / "fifo.ckpt.metadata.yaml")
    (outputs / "outward.ckpt.metadata.yaml").symlink_to("/etc/passwd")
    write_in_place(outputs / "good.ckpt", checkpoint_bytes(2))
    result = run(tmp_path, "metadata", "outputs")
    assert result.returncode == 3, result
    assert (outputs / "good.ckpt.metadata.yaml").is_file()
    for name in BLOCKED:
        assert f"outputs/{name}.ckpt\t" in result.stdout
        assert not (outputs / f"{name}.ckpt.metadata.yaml").is_file() or name == "outward"
