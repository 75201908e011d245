"""A state directory that cannot be used: the message says why, and what helps against that."""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ckptd.catalog.state import State, StateError


def refusal_of(directory: pathlib.Path) -> str:
    """What is said when a state is opened there."""
    with pytest.raises(StateError) as refused:
        State.open(str(directory), boot_id="", clock=lambda: 0.0)
    assert str(refused.value).startswith(f"the state {directory}")
    assert str(refused.value).endswith("or name another --state-dir")
    return str(refused.value)


def test_a_file_in_the_way_is_to_be_moved(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "move away what is no directory there" in refusal_of(place)


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 64 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
def test_on_a_full_disk_space_is_to_be_freed(small_disk: pathlib.Path) -> None:
    (small_disk / "state").mkdir()
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert "free space on its disk" in refusal_of(small_disk / "state")


@pytest.mark.root
def test_on_a_disk_that_is_read_only_writing_is_to_be_allowed(small_disk: pathlib.Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for place in (small_disk, small_disk / "state"):
        assert "let this user write there" in refusal_of(place)


_AS_NOBODY = """
import os, sys
from ckptd.catalog.state import State, StateError
os.setresuid(65534, 65534, 65534)
try:
    State.open(sys.argv[1], boot_id="", clock=lambda: 0.0)
except StateError as error:
    print(error)
"""


@pytest.mark.root
def test_in_a_directory_of_somebody_else_writing_is_to_be_allowed(tmp_path: pathlib.Path) -> None:
    """Root may write everywhere; nobody may not."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Permission denied; let this user write there" in done.stdout, done.stderr
