"""A sidecar is whole or not there, and what somebody else wrote is never lost."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.catalog import sidecar as module
from ckptd.catalog.description import CheckpointMetadata, SidecarStatus, Source
from ckptd.catalog.renaming import exchange, rename_no_replace
from ckptd.catalog.sidecar import (
    Author,
    author_of,
    clean_leftovers,
    is_ours,
    remove_sidecar,
    render,
    sidecar_path,
    status_of,
    write_sidecar,
)
from ckptd.catalog.temporary import is_abandoned, is_swap_name, is_temporary_name, swap_name, temporary_name
from ckptd.validators.reader import identity_of
from tests.catalog.metadata_files import opened, write

OURS = render(CheckpointMetadata(exp_name="one", source=Source(size_bytes=10, archive_id="a")))
NEWER = render(CheckpointMetadata(exp_name="two", source=Source(size_bytes=10, archive_id="a")))
TRAININGS = render(
    CheckpointMetadata(exp_name="trained", source=Source(size_bytes=10, archive_id="a")), author=Author.TRAINING
)
STRANGERS = b"exp_name: written by hand\n"
NAME = "exp/best.ckpt.metadata.yaml"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "root/exp/best.ckpt", "checkpoint")
    (tmp_path / "root").chmod(0o755)
    return tmp_path / "root"


def put(root: Path, data: bytes = OURS, *, name: str = NAME, replace_ours: bool = False) -> None:
    with opened(root) as root_fd:
        status = os.stat(root / "exp/best.ckpt")
        identity = write_sidecar(root_fd, name.encode(), data, like=status, replace_ours=replace_ours)
    assert identity == identity_of(os.stat(root / name))


def names(root: Path) -> list[str]:
    return sorted(os.listdir(root / "exp"))


# ---- ownership -------------------------------------------------------------------------------------------------


def test_any_edit_of_any_byte_makes_it_a_persons() -> None:
    assert is_ours(OURS)
    for position in range(len(OURS)):
        edited = bytearray(OURS)
        edited[position] ^= 1
        assert not is_ours(bytes(edited)), f"byte {position}"
        assert not is_ours(OURS[:position] + OURS[position + 1 :]), f"without byte {position}"


def test_any_edit_of_what_a_training_wrote_makes_it_a_persons() -> None:
    assert author_of(TRAININGS) is Author.TRAINING
    for position in range(len(TRAININGS)):
        edited = bytearray(TRAININGS)
        edited[position] ^= 1
        assert author_of(bytes(edited)) is None, f"byte {position}"
    assert author_of(TRAININGS.replace(b"training-blake2b:", b"blake2b:")) is None
    assert author_of(OURS.replace(b"blake2b:", b"training-blake2b:")) is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data + b"\n",
        lambda data: data + b"# a note\n",
        lambda data: b"# a note\n" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data + data,
        lambda data: b"\n".join(reversed(data.split(b"\n"))),
        lambda data: data.rpartition(b"  body_digest")[0],
        lambda data: b"",
    ],
)
def test_edits_of_the_whole_file_show(edit: object) -> None:
    assert not is_ours(edit(OURS))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("data", "source", "status"),
    [
        (OURS, Source(size_bytes=10, archive_id="a"), SidecarStatus.OURS),
        (OURS, Source(size_bytes=11, archive_id="a"), SidecarStatus.STALE_OURS),
        (OURS, Source(size_bytes=10, archive_id="b"), SidecarStatus.STALE_OURS),
        (STRANGERS, Source(), SidecarStatus.FOREIGN),
        (STRANGERS, Source(size_bytes=10), SidecarStatus.FOREIGN),
        (STRANGERS, Source(size_bytes=11), SidecarStatus.STALE),
        (STRANGERS, Source(archive_id="b"), SidecarStatus.STALE),
        (STRANGERS, Source(modified_at="2001-01-01T00:00:00Z"), SidecarStatus.FOREIGN),
        (TRAININGS, Source(size_bytes=10, archive_id="a"), SidecarStatus.FOREIGN),
        (TRAININGS, Source(size_bytes=11, archive_id="a"), SidecarStatus.STALE),
        (OURS[:-1], Source(size_bytes=10, archive_id="a"), SidecarStatus.FOREIGN),
        (STRANGERS, None, SidecarStatus.INVALID),
    ],
)
def test_status_by_owner_size_and_contents(data: bytes, source: Source | None, status: SidecarStatus) -> None:
    assert status_of(data, source, size_bytes=10, archive_id="a") is status


def test_a_file_without_archive_id_is_judged_by_its_size() -> None:
    assert status_of(OURS, Source(archive_id="a"), size_bytes=10, archive_id=None) is SidecarStatus.OURS


def test_every_key_is_written_and_the_digest_comes_last() -> None:
    assert OURS.startswith(b"# ")
    assert OURS.splitlines()[-1].startswith(b"  body_digest: blake2b:")
    assert b"hydra_config_path: null\n" in OURS


def test_values_that_occur_twice_are_written_twice() -> None:
    shared = {"a": [1]}
    data = render(CheckpointMetadata(), {"x": shared, "y": shared})
    assert b"&" not in data
    assert is_ours(data)


# ---- writing ---------------------------------------------------------------------------------------------------


def test_it_appears_whole_alone_and_with_the_identity_that_is_returned(root: Path) -> None:
    put(root)
    assert (root / NAME).read_bytes() == OURS
    assert names(root) == ["best.ckpt", "best.ckpt.metadata.yaml"]


@pytest.mark.parametrize("data", [STRANGERS, OURS, b""])
def test_an_existing_file_is_never_replaced_unasked(root: Path, data: bytes) -> None:
    write(root / NAME, data)
    with pytest.raises(FileExistsError) as caught:
        put(root, NEWER)
    assert caught.value.filename == NAME
    assert (root / NAME).read_bytes() == data
    assert len(names(root)) == 2


@pytest.mark.parametrize("data", [STRANGERS, OURS + b"#", b""])
def test_asked_to_replace_ours_it_still_replaces_nobody_elses(root: Path, data: bytes) -> None:
    write(root / NAME, data)
    with pytest.raises(FileExistsError):
        put(root, NEWER, replace_ours=True)
    assert (root / NAME).read_bytes() == data
    assert len(names(root)) == 2


def test_ours_is_replaced_when_asked(root: Path) -> None:
    put(root)
    put(root, NEWER, replace_ours=True)
    assert (root / NAME).read_bytes() == NEWER
    assert len(names(root)) == 2


def test_to_replace_what_has_gone_is_to_write(root: Path) -> None:
    put(root, replace_ours=True)
    assert (root / NAME).read_bytes() == OURS


def test_links_are_neither_followed_nor_replaced(root: Path) -> None:
    outside = write(root.parent / "outside.yaml", OURS)
    (root / NAME).symlink_to(outside)
    for replace_ours in (False, True):
        with pytest.raises(FileExistsError):
            put(root, NEWER, replace_ours=replace_ours)
    assert outside.read_bytes() == OURS
    with opened(root) as root_fd:
        assert not remove_sidecar(root_fd, NAME.encode())
    assert (root / NAME).is_symlink()


@pytest.mark.parametrize("name", ["link/best.metadata.yaml", "../outside/best.metadata.yaml"])
def test_nothing_is_written_outside_the_root(root: Path, name: str) -> None:
    (root.parent / "outside").mkdir()
    (root / "link").symlink_to(root.parent / "outside")
    with opened(root) as root_fd, pytest.raises(OSError, match=r"best\.metadata\.yaml"):
        write_sidecar(root_fd, name.encode(), OURS, like=os.stat(root))
    assert os.listdir(root.parent / "outside") == []


@pytest.mark.parametrize("replace_ours", [False, True])
def test_a_stranger_between_check_and_rename_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, replace_ours: bool
) -> None:
    if replace_ours:
        put(root)

    def stranger_first(directory_fd: int, one: bytes, other: bytes) -> bool:
        if other == os.path.basename(NAME).encode():
            write(root / "exp/strangers", STRANGERS).rename(root / NAME)
            monkeypatch.undo()
        return bool(real(directory_fd, one, other))

    real = exchange if replace_ours else rename_no_replace
    monkeypatch.setattr(module, real.__name__, stranger_first)
    with pytest.raises(FileExistsError):
        put(root, NEWER, replace_ours=replace_ours)
    assert (root / NAME).read_bytes() == STRANGERS
    assert len(names(root)) == 2


def test_a_stranger_between_check_and_removal_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root)

    def stranger_first(directory_fd: int, source: bytes, target: bytes) -> None:
        monkeypatch.undo()
        write(root / "exp/strangers", STRANGERS).rename(root / NAME)
        rename_no_replace(directory_fd, source, target)

    monkeypatch.setattr(module, "rename_no_replace", stranger_first)
    with opened(root) as root_fd:
        assert not remove_sidecar(root_fd, NAME.encode())
    assert (root / NAME).read_bytes() == STRANGERS
    assert len(names(root)) == 2


def test_without_renameat2_a_link_keeps_the_promise(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.catalog.renaming._function", lambda: None)
    put(root)
    with pytest.raises(FileExistsError):
        put(root, NEWER)
    put(root, NEWER, replace_ours=True)
    assert (root / NAME).read_bytes() == NEWER
    assert len(names(root)) == 2


def test_of_many_writers_at_once_exactly_one_wins(root: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        try:
            put(root)
            outcomes.append("written")
        except FileExistsError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["written"]
    assert len(names(root)) == 2


@pytest.mark.parametrize("length", [240, 255])
def test_names_up_to_the_limit_of_the_filesystem_are_written(root: Path, length: int) -> None:
    name = "x" * (length - len(".metadata.yaml")) + ".metadata.yaml"
    put(root, name=f"exp/{name}")
    put(root, NEWER, name=f"exp/{name}", replace_ours=True)
    assert (root / "exp" / name).read_bytes() == NEWER


def test_a_name_beyond_the_limit_is_refused_with_what_to_do(root: Path) -> None:
    with pytest.raises(OSError, match="shorten the checkpoint's name") as caught:
        put(root, name="exp/" + "x" * 242 + ".metadata.yaml")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert names(root) == ["best.ckpt"]


def test_mode_follows_the_checkpoint(root: Path) -> None:
    (root / "exp/best.ckpt").chmod(0o640)
    put(root)
    assert os.stat(root / NAME).st_mode & 0o7777 == 0o640


@needs_root
@pytest.mark.root
def test_owner_follows_the_checkpoint(root: Path) -> None:
    os.chown(root / "exp/best.ckpt", 65534, 65534)
    put(root)
    assert (os.stat(root / NAME).st_uid, os.stat(root / NAME).st_gid) == (65534, 65534)


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's power to write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_directory_refuses_with_the_path(root: Path) -> None:
    (root / "exp").chmod(0o555)
    status = os.stat(root / "exp/best.ckpt")
    with opened(root) as root_fd, nobody(), pytest.raises(PermissionError) as caught:
        write_sidecar(root_fd, NAME.encode(), OURS, like=status)
    assert caught.value.filename == NAME
    assert names(root) == ["best.ckpt"]


@needs_root
@pytest.mark.root
def test_a_full_disk_leaves_nothing_behind_and_keeps_what_was_there(root: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", root], check=True)
    try:
        write(root / "exp/best.ckpt", "")
        put(root)
        free = os.statvfs(root)
        write(root / "exp/filler", bytes(free.f_bavail * free.f_frsize))
        with pytest.raises(OSError, match="No space") as caught:
            put(root, NEWER, replace_ours=True)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, NAME)
        assert (root / NAME).read_bytes() == OURS
        assert names(root) == ["best.ckpt", "best.ckpt.metadata.yaml", "filler"]
    finally:
        subprocess.run(["umount", root], check=True)


# ---- removing and cleaning up ----------------------------------------------------------------------------------


def test_ours_is_removed_and_nobody_elses(root: Path) -> None:
    with opened(root) as root_fd:
        put(root)
        assert remove_sidecar(root_fd, NAME.encode())
        assert names(root) == ["best.ckpt"]
        assert not remove_sidecar(root_fd, NAME.encode())
        assert not remove_sidecar(root_fd, b"gone/best.metadata.yaml")
        for data in (STRANGERS, OURS + b" "):
            write(root / NAME, data)
            assert not remove_sidecar(root_fd, NAME.encode())
            assert (root / NAME).read_bytes() == data


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(root: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "from ckptd.catalog.temporary import *; print(temporary_name(b'a').decode())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    living = temporary_name(b"b").decode()
    for name in (dead, living, ".b.tmp", "b.metadata.yaml"):
        write(root / "exp" / name, OURS[:10])
    with opened(root) as root_fd:
        assert clean_leftovers(root_fd, b"exp") == 1
    assert names(root) == sorted(["best.ckpt", living, ".b.tmp", "b.metadata.yaml"])


def test_leftovers_of_other_machines_go_by_age(root: Path) -> None:
    elsewhere = temporary_name(b"a").replace(temporary_name(b"a").split(b"-")[1], b"00000000", 1)
    assert is_temporary_name(elsewhere)
    assert not is_abandoned(elsewhere, 1000.0, 1000.0 + 3599)
    assert is_abandoned(elsewhere, 1000.0, 1000.0 + 3601)
    assert not is_abandoned(b"best.ckpt", 0.0, 1e10)


def test_a_persons_file_caught_in_a_swap_stays(root: Path) -> None:
    host = temporary_name(b"a").split(b"-")[1]
    for data, left in ((STRANGERS, True), (OURS, False)):
        name = swap_name(b"a").replace(host, b"00000000", 1)
        assert is_swap_name(name)
        write(root / "exp" / os.fsdecode(name), data)
        with opened(root) as root_fd:
            clean_leftovers(root_fd, b"exp", now=1e12)
        assert (root / "exp" / os.fsdecode(name)).exists() is left


def test_where_a_sidecar_lies() -> None:
    assert sidecar_path(b"exp/best.ckpt") == b"exp/best.ckpt.metadata.yaml"
    assert sidecar_path(b"exp/best.ckpt", long_name=False) == b"exp/best.metadata.yaml"
    assert sidecar_path(b"checkpoint-5", long_name=False) == b"checkpoint-5.metadata.yaml"


# ---- trainings -------------------------------------------------------------------------------------------------


def test_ckptd_neither_replaces_nor_removes_what_a_training_wrote(root: Path) -> None:
    write(root / NAME, TRAININGS)
    for replace_ours in (False, True):
        with pytest.raises(FileExistsError):
            put(root, replace_ours=replace_ours)
    with opened(root) as root_fd:
        assert not remove_sidecar(root_fd, NAME.encode())
    assert (root / NAME).read_bytes() == TRAININGS


@pytest.mark.parametrize("there", [OURS, TRAININGS])
def test_a_training_replaces_and_removes_what_ckptd_or_a_training_wrote(root: Path, there: bytes) -> None:
    newer = render(CheckpointMetadata(exp_name="two"), author=Author.TRAINING)
    write(root / NAME, there)
    put(root, newer, replace_ours=True)
    assert (root / NAME).read_bytes() == newer
    write(root / NAME, there)
    with opened(root) as root_fd:
        assert remove_sidecar(root_fd, NAME.encode(), author=Author.TRAINING)
    assert names(root) == ["best.ckpt"]


def test_a_training_neither_replaces_nor_removes_what_a_person_wrote(root: Path) -> None:
    edited = TRAININGS.replace(b"trained", b"edited!")
    write(root / NAME, edited)
    with pytest.raises(FileExistsError):
        put(root, TRAININGS, replace_ours=True)
    with opened(root) as root_fd:
        assert not remove_sidecar(root_fd, NAME.encode(), author=Author.TRAINING)
    assert (root / NAME).read_bytes() == edited
    assert names(root) == ["best.ckpt", "best.ckpt.metadata.yaml"]


def test_swap_files_of_a_killed_training_are_cleaned_up(root: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", "from ckptd.catalog.temporary import swap_name as s; print(s(b'x').decode())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    write(root / "exp" / killed, TRAININGS)
    with opened(root) as root_fd:
        assert clean_leftovers(root_fd, b"exp") == 1
    assert names(root) == ["best.ckpt"]
