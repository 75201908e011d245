"""The portable index: written whole, read leniently, left alone when it already says the same."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.catalog.entry import MetadataSource
from ckptd.catalog.index import INDEX_NAME, Experiment, Index, index_of, read_index, write_index
from tests.catalog.catalog_records import record_of

NAME = os.fsdecode(INDEX_NAME)
S = 1_000_000_000


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


RECORDS = [
    record_of("b/2.ckpt", exp_name="b", modified_ns=3 * S, metadata_source=MetadataSource.DAEMON),
    record_of("b/1.ckpt", exp_name="b", modified_ns=5 * S),
    record_of("a/x.ckpt", exp_name="a", modified_ns=1 * S, metadata_source=MetadataSource.STATE),
    record_of("loose.ckpt", modified_ns=1 * S),
]


def test_the_file_is_what_other_readers_expect(tmp_path: Path, root_fd: int) -> None:
    assert write_index(root_fd, index_of(RECORDS), now=7.0)
    assert json.loads((tmp_path / NAME).read_text()) == {
        "version": "2.0",
        "last_updated": "1970-01-01T00:00:07.000Z",
        "checkpoints": {
            "": {"checkpoints": ["loose.ckpt"], "metadata_files": [], "last_modified": "1970-01-01T00:00:01.000Z"},
            "a": {"checkpoints": ["a/x.ckpt"], "metadata_files": [], "last_modified": "1970-01-01T00:00:01.000Z"},
            "b": {
                "checkpoints": ["b/1.ckpt", "b/2.ckpt"],
                "metadata_files": ["b/2.ckpt.metadata.yaml"],
                "last_modified": "1970-01-01T00:00:05.000Z",
            },
        },
    }
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) & 0o444 == 0o444, "others read it"
    assert os.listdir(tmp_path) == [NAME], "nothing is left beside it"


def test_what_was_written_is_read(root_fd: int) -> None:
    index = index_of(RECORDS)
    write_index(root_fd, index)
    read = read_index(root_fd)
    assert read.reason is None
    assert read.index == index
    assert index.paths() == ["loose.ckpt", "a/x.ckpt", "b/1.ckpt", "b/2.ckpt"]


def test_sidecars_are_listed_by_the_names_that_they_have(tmp_path: Path, root_fd: int) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.metadata.yaml").write_text("")
    assert index_of(RECORDS, root_fd).checkpoints["b"].metadata_files == ["b/2.metadata.yaml"]


def test_an_index_that_says_the_same_is_left_alone(tmp_path: Path, root_fd: int) -> None:
    assert write_index(root_fd, index_of(RECORDS), now=1.0)
    before = (tmp_path / NAME).stat()
    assert not write_index(root_fd, index_of(reversed(RECORDS)), now=2.0)
    assert (tmp_path / NAME).stat() == before
    assert write_index(root_fd, index_of(RECORDS[1:]), now=3.0)
    assert (tmp_path / NAME).stat().st_ino != before.st_ino, "replaced, never written in place"


def test_other_keys_and_older_forms_are_understood(tmp_path: Path, root_fd: int) -> None:
    (tmp_path / NAME).write_text(
        '{"version": "2.1", "last_updated": 1.5, "tool": {"x": [1]}, "checkpoints": '
        '{"e": {"checkpoints": ["a.ckpt"], "last_modified": 12.5, "more": null}}}'
    )
    read = read_index(root_fd)
    assert read.index == Index("2.1", 1.5, {"e": Experiment(["a.ckpt"], [], 12.5)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no index"),
        (b"", "torn"),
        (b'{"version": "2.0", "checkpoints": {"e": {"checkpoints": ["a.ck', "torn"),
        (b"\xff\xfe\x00", "torn"),
        (b"[]", "not one"),
        (b'{"version": "2.0", "checkpoints": {"e": {"checkpoints": "a.ckpt"}}}', "not one"),
        (b'{"checkpoints": {}}', "not one"),
        (b'{"version": "1.0"}', "version 1.0"),
        (b"[" * 100_000, "torn"),
    ],
)
def test_what_is_no_index_is_none_with_a_reason(
    tmp_path: Path, root_fd: int, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    read = read_index(root_fd)
    assert read.index is None
    assert reason in (read.reason or "")
    assert write_index(root_fd, index_of(RECORDS)), "and it is replaced by a good one"
    assert read_index(root_fd).index is not None


def test_a_fifo_or_a_link_in_its_place_is_not_waited_for_and_not_followed(tmp_path: Path, root_fd: int) -> None:
    os.mkfifo(tmp_path / NAME)
    assert read_index(root_fd).index is None
    (tmp_path / NAME).unlink()
    (tmp_path / "target").write_text("precious")
    (tmp_path / NAME).symlink_to("target")
    assert read_index(root_fd).index is None
    assert write_index(root_fd, index_of(RECORDS))
    assert (tmp_path / "target").read_text() == "precious"


def test_a_directory_in_its_place_is_an_error_and_leaves_nothing_behind(tmp_path: Path, root_fd: int) -> None:
    (tmp_path / NAME / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_index(root_fd, index_of(RECORDS))
    assert os.listdir(tmp_path) == [NAME]


def test_names_that_are_not_text_are_shown_escaped(root_fd: int) -> None:
    assert write_index(root_fd, index_of([record_of("caf\\xe9.ckpt")]))
    read = read_index(root_fd)
    assert read.index is not None
    assert read.index.paths() == ["caf\\xe9.ckpt"]
