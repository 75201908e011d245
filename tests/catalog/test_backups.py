"""A person's file is replaced only with a backup beside it, whatever stops us on the way."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptd.catalog.backups import clean_swaps, replace_with_backup, set_aside
from ckptd.catalog.sidecar import clean_leftovers
from ckptd.validators.reader import identity_of
from tests.catalog.metadata_files import opened, write

NAME = "best.ckpt.metadata.yaml"
OLD = b"exp_name: by hand\n"
NEW = b"exp_name: repaired\n"
LATER = 4_000_000_000.0


def identity(path: Path):
    return identity_of(path.stat())


def replace(root: Path) -> str:
    with opened(root) as root_fd:
        like, expected = (root / NAME).stat(), identity(root / NAME)
        return os.fsdecode(replace_with_backup(root_fd, NAME.encode(), NEW, like=like, expected=expected))


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_the_old_file_is_kept_and_no_backup_is_ever_overwritten(tmp_path):
    write(tmp_path / NAME, OLD)
    assert replace(tmp_path) == f"{NAME}.bak"
    write(tmp_path / NAME, b"again by hand\n")
    assert replace(tmp_path) == f"{NAME}.bak1"
    assert contents(tmp_path) == {NAME: NEW, f"{NAME}.bak": OLD, f"{NAME}.bak1": b"again by hand\n"}


def test_the_backup_is_the_old_file_itself_with_its_time_and_mode(tmp_path):
    before = write(tmp_path / NAME, OLD)
    before.chmod(0o640)
    os.utime(before, (1_700_000_000, 1_700_000_000))
    replace(tmp_path)
    status = (tmp_path / f"{NAME}.bak").stat()
    assert (status.st_mode & 0o777, status.st_mtime, status.st_nlink) == (0o640, 1_700_000_000, 1)


def test_without_hard_links_the_backup_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / NAME, OLD)
    os.utime(tmp_path / NAME, (1_700_000_000, 1_700_000_000))
    replace(tmp_path)
    assert contents(tmp_path) == {NAME: NEW, f"{NAME}.bak": OLD}
    assert (tmp_path / f"{NAME}.bak").stat().st_mtime == 1_700_000_000


def test_a_file_that_was_written_since_it_was_judged_stays(tmp_path):
    path = write(tmp_path / NAME, OLD)
    expected = identity(path)
    write(path, b"a person saved this just now\n")
    os.utime(path, ns=(1, 1))
    with opened(tmp_path) as root_fd, pytest.raises(FileExistsError, match="meanwhile"):
        replace_with_backup(root_fd, NAME.encode(), NEW, like=path.stat(), expected=expected)
    assert contents(tmp_path) == {NAME: b"a person saved this just now\n"}


def test_after_a_hundred_backups_it_says_so_and_changes_nothing(tmp_path):
    for number in range(100):
        write(tmp_path / f"{NAME}.bak{number or ''}", b"%d" % number)
    write(tmp_path / NAME, OLD)
    for act in (lambda fd: set_aside(fd, NAME.encode()), lambda _: replace(tmp_path)):
        with opened(tmp_path) as root_fd, pytest.raises(FileExistsError, match="remove some"):
            act(root_fd)
    assert contents(tmp_path)[NAME] == OLD
    assert len(contents(tmp_path)) == 101


def test_setting_aside_takes_the_next_free_name(tmp_path):
    write(tmp_path / "sub" / NAME, OLD)
    write(tmp_path / "sub" / f"{NAME}.bak", b"older")
    with opened(tmp_path) as root_fd:
        assert set_aside(root_fd, b"sub/" + NAME.encode()) == b"sub/" + NAME.encode() + b".bak1"
    assert contents(tmp_path / "sub") == {f"{NAME}.bak": b"older", f"{NAME}.bak1": OLD}


def test_a_swap_file_goes_only_if_what_it_holds_is_kept_elsewhere(tmp_path):
    write(tmp_path / f"{NAME}.bak", OLD)
    kept = f".{NAME}.ckptd-00000000-1-1-00000000.swap"
    lost = f".{NAME}.ckptd-00000000-1-1-00000001.swap"
    write(tmp_path / kept, OLD)
    write(tmp_path / lost, b"nowhere else\n")
    with opened(tmp_path) as root_fd:
        assert clean_swaps(root_fd, b"", now=LATER) == 1
    assert set(contents(tmp_path)) == {f"{NAME}.bak", lost}


@pytest.mark.slow
def test_a_person_who_saves_meanwhile_never_loses_a_version(tmp_path):
    """Whatever they put there is in its place or in a backup as soon as we are done with it."""
    path = write(tmp_path / NAME, OLD)
    rounds, lost, done = [0], [], threading.Event()

    def person():
        for number in range(80):
            text = b"version %d\n" % number
            write(tmp_path / "mine", text).replace(path)
            seen = rounds[0]
            while rounds[0] < seen + 2:
                os.sched_yield()
            if text not in contents(tmp_path).values():
                lost.append(text)
        done.set()

    thread = threading.Thread(target=person)
    thread.start()
    replaced = 0
    while not done.is_set():
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            if path.read_bytes() != NEW:
                replace(tmp_path)
                replaced += 1
        rounds[0] += 1
    thread.join()
    assert lost == []
    assert replaced
    assert not [name for name in contents(tmp_path) if name.endswith((".tmp", ".swap"))]


WRITER = """
import os, sys
from ckptd.catalog.backups import replace_with_backup
from ckptd.validators.reader import identity_of
root = os.open(sys.argv[1], os.O_PATH)
status = os.stat(sys.argv[1] + "/best.ckpt.metadata.yaml")
data = b"exp_name: repaired\\n"
try:
    replace_with_backup(root, b"best.ckpt.metadata.yaml", data, like=status, expected=identity_of(status))
except OSError:
    os._exit(3)
os._exit(0)
"""
CALLS = "renameat2,renameat,rename,linkat,fsync,write,unlinkat,unlink,fchmod,fchown"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_stopped_at_any_call_a_second_run_ends_as_one_clean_run_does(tmp_path, what):
    root = tmp_path / "root"
    root.mkdir()
    command = [sys.executable, "-c", WRITER, str(root)]
    log = tmp_path / "log"
    write(root / NAME, OLD)
    subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", f"trace={CALLS}", *command], check=True)
    calls = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    clean = contents(root)
    stopped = 0
    for index, call in enumerate(calls):
        for path in root.iterdir():
            path.unlink()
        write(root / NAME, OLD)
        inject = f"inject={call}:{what}:when={calls[: index + 1].count(call)}"
        run = subprocess.run(
            ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", inject, *command], check=False
        )
        stopped += run.returncode != 0
        assert OLD in contents(root).values(), f"{call} #{index}: nothing is lost"
        with opened(root) as root_fd:
            clean_leftovers(root_fd, b"", now=LATER)
            if contents(root)[NAME] == OLD:
                replace(root)
            clean_swaps(root_fd, b"", now=LATER)
        assert contents(root) == clean, f"{call} #{index}"
    assert stopped
