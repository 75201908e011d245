"""Reading opened files: past the page cache, within a bandwidth, and what is found is always what is there."""

import contextlib
import ctypes
import errno
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.catalog.opening import reopen_direct
from ckptd.validators import Changed
from ckptd.validators import reader as reader_module
from ckptd.validators.reader import ALIGNMENT, FileReader, Reading

SIZE = 3_000_001
_DONTCACHE = 0x80


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def fd(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> Iterator[int]:
    """A file of random bytes that the disk has."""
    path = tmp_path_factory.mktemp("read") / "file"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


@contextlib.contextmanager
def _direct(fd: int) -> Iterator[int]:
    descriptor = reopen_direct(fd)
    if descriptor is None:
        pytest.skip("this file system reads through the page cache only")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _cached_places(fd: int) -> int:
    """Of 32 places of the file, how many are in the page cache. Nothing is read for it."""
    with mmap.mmap(fd, SIZE, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * (-(-SIZE // mmap.PAGESIZE)))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(SIZE), pages) == 0
        del first
    return sum(pages[len(pages) * place // 32] & 1 for place in range(32))


def _drop(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if _cached_places(fd):
        pytest.skip("this file system keeps everything cached")


def _read_through(reader: FileReader) -> bytes:
    buffer = memoryview(bytearray(reader.piece_bytes))
    pieces = []
    for position in range(0, reader.size, len(buffer)):
        size = min(len(buffer), reader.size - position)
        reader.read_into(position, buffer, size)
        pieces.append(bytes(buffer[:size]))
    return b"".join(pieces)


@pytest.mark.parametrize("spare_cache", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_every_way_of_reading_reads_the_same(fd: int, data: bytes, *, spare_cache: bool, fresh: bool) -> None:
    reader = FileReader(fd, Reading(spare_cache=spare_cache, fresh=fresh, mb_per_s=10_000))
    assert _read_through(reader) == data
    assert reader.bytes_read == SIZE
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_unbuffered_reads_of_any_range_are_those_of_the_file(fd: int, data: bytes) -> None:
    with _direct(fd) as direct:
        reader = FileReader(direct, Reading(fresh=True))
        buffer = memoryview(bytearray(2 * ALIGNMENT + 1))

        @settings(max_examples=60, deadline=None)
        @given(st.integers(0, SIZE + 10), st.integers(0, 2 * ALIGNMENT), st.integers(0, 1))
        def check(offset: int, size: int, shift: int) -> None:
            expected = data[offset : offset + size]
            assert reader.read(offset, size) == expected
            if len(expected) == size:
                assert reader.read_exactly(offset, size) == expected
                reader.read_into(offset, buffer[shift:], size)
                assert buffer[shift : shift + size] == expected
            else:
                with pytest.raises(Changed):
                    reader.read_exactly(offset, size)
                with pytest.raises(Changed):
                    reader.read_into(offset, buffer[shift:], size)

        check()
        assert _read_through(reader) == data
        places = [0, 1, ALIGNMENT - 1, SIZE - 5]
        assert reader.read_each(places, [5] * 4) == [data[place : place + 5] for place in places]


def test_unbuffered_reads_do_not_touch_the_page_cache(fd: int) -> None:
    with _direct(fd) as direct:
        _drop(fd)
        _read_through(FileReader(direct, Reading(fresh=True)))
        assert _cached_places(fd) == 0


def test_reading_anew_drops_what_is_cached_first(fd: int) -> None:
    _drop(fd)
    _read_through(FileReader(fd))
    assert _cached_places(fd) > 16
    FileReader(fd, Reading(fresh=True))
    assert _cached_places(fd) == 0


@pytest.fixture(params=["this kernel", "before Linux 6.14"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as if the kernel did not know RWF_DONTCACHE."""
    if request.param == "this kernel":
        return
    preadv = os.preadv

    def refusing(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        if flags & _DONTCACHE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", refusing)
    monkeypatch.setattr(reader_module, "_DROP_BYTES", 1 << 20)


@pytest.mark.usefixtures("kernel")
def test_sparing_the_cache_leaves_it_empty_where_it_was_empty(fd: int, data: bytes) -> None:
    _drop(fd)
    assert _read_through(FileReader(fd, Reading(spare_cache=True))) == data
    assert _cached_places(fd) <= 2


@pytest.mark.usefixtures("kernel")
def test_sparing_the_cache_leaves_it_full_where_it_was_full(fd: int, data: bytes) -> None:
    os.pread(fd, SIZE, 0)
    assert _cached_places(fd) == 32
    assert _read_through(FileReader(fd, Reading(spare_cache=True))) == data
    assert _cached_places(fd) == 32


def test_a_bandwidth_is_kept_by_sleeping_off_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own: 10 MB at 5 MB/s take 2 s, and a pause earns nothing."""
    now, slept = 100.0, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    reading = Reading(mb_per_s=5)
    for _ in range(10):
        reading.pay(1_000_000)
    assert slept == pytest.approx(2)
    now += 60
    reading.pay(1_000_000)
    assert slept == pytest.approx(2.2)
    Reading().pay(1 << 40)
    Reading(mb_per_s=0).pay(1 << 40)
    assert slept == pytest.approx(2.2)


def test_a_file_that_is_cut_while_it_is_read_has_changed(fd: int) -> None:
    reader = FileReader(fd)
    os.ftruncate(fd, SIZE // 2)
    with pytest.raises(Changed, match="shrank"):
        _read_through(reader)


def test_holes_are_told_by_place_and_the_position_stays(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 16))
        file.seek(1 << 20)
        file.write(os.urandom(1 << 16))
        file.truncate(2 << 20)
        os.fsync(file.fileno())
    fd = os.open(path, os.O_RDONLY)
    try:
        os.lseek(fd, 77, os.SEEK_SET)
        reader = FileReader(fd)
        holes = reader.holes(0, reader.size)
        if not holes:
            pytest.skip("this file system cannot say")
        assert holes == [(1 << 16, 1 << 20), ((1 << 20) + (1 << 16), 2 << 20)]
        assert reader.holes(0, 1 << 17) == [(1 << 16, 1 << 17)]
        assert reader.holes(0, 1 << 16) == []
        assert os.lseek(fd, 0, os.SEEK_CUR) == 77
    finally:
        os.close(fd)
