"""An index that somebody planted: who may write into a root decides neither the daemon's memory nor a reader's."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ckptd.catalog.index import INDEX_NAME, Experiment, Index, read_index, write_index

MEMORY_BYTES = 192 << 20
"""Address space beyond the process's own; what `_index_of` makes takes 0.5 GB and more when it is decoded."""
_IN_A_SMALL_PROCESS = f"""
import os, resource, sys
from ckptd.catalog.index import Index, read_index, write_index
own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (own + {MEMORY_BYTES},) * 2)
fd = os.open(sys.argv[2], os.O_RDONLY)
print(write_index(fd, Index("2.0")) if sys.argv[1] == "write" else read_index(fd).reason)
"""


def _index_of(experiments: int = 0, paths: int = 0) -> bytes:
    """An index that takes many times its size in memory."""
    named = ",".join(f'"{number:x}":{{}}' for number in range(experiments))
    listed = ",".join(f'"{number:x}"' for number in range(paths))
    lists = f'"paths":{{"checkpoints":[{listed}]}}'
    return f'{{"version":"2.0","checkpoints":{{{named or lists}}}}}'.encode()


def _said(what: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_SMALL_PROCESS, what, str(directory)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr[-500:]


def test_a_planted_index_is_replaced_without_being_read(tmp_path: Path) -> None:
    """One of 27 MB took 0.6 GB of the daemon, one of 256 MB would have taken 6."""
    (tmp_path / os.fsdecode(INDEX_NAME)).write_bytes(_index_of(experiments=1_500_000))
    assert _said("write", tmp_path) == "True\n"
    assert (tmp_path / os.fsdecode(INDEX_NAME)).stat().st_size < 1000


@pytest.mark.slow
def test_an_index_of_more_experiments_than_anybody_has_is_not_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(INDEX_NAME)).write_bytes(_index_of(experiments=1_500_000))
    assert "more experiments" in _said("read", tmp_path)


def test_an_index_of_more_files_than_anybody_has_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.catalog.index.MAX_FILES", 100)
    (tmp_path / os.fsdecode(INDEX_NAME)).write_bytes(_index_of(paths=200))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert "more experiments or files" in str(read_index(fd).reason)
    finally:
        os.close(fd)


def test_the_index_stays_as_it_is_while_it_says_the_same_and_is_made_anew_if_not(tmp_path: Path) -> None:
    """Of the same length, it is compared byte by byte."""
    index = Index("2.0", checkpoints={"exp": Experiment(["exp/a.ckpt"], ["exp/a.ckpt.metadata.yaml"], "then")})
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert write_index(fd, msgspec.structs.replace(index), now=1.0)
        written = (tmp_path / os.fsdecode(INDEX_NAME)).read_bytes()
        assert not write_index(fd, msgspec.structs.replace(index), now=2.5)
        assert (tmp_path / os.fsdecode(INDEX_NAME)).read_bytes() == written
        (tmp_path / os.fsdecode(INDEX_NAME)).write_bytes(written.replace(b"a.ckpt", b"b.ckpt"))
        assert write_index(fd, msgspec.structs.replace(index), now=2.5)
        assert read_index(fd).index == msgspec.structs.replace(index, last_updated="1970-01-01T00:00:02.500Z")
    finally:
        os.close(fd)


def test_the_soft_limit_of_these_tests_is_enough_for_an_honest_index(tmp_path: Path) -> None:
    """Else the ones above would prove nothing."""
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    (tmp_path / os.fsdecode(INDEX_NAME)).write_bytes(_index_of(paths=100_000))
    assert _said("read", tmp_path) == "None\n"
    assert _said("write", tmp_path) == "True\n"
