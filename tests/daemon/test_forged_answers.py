"""Whoever takes a child over has its answer left: it costs the file its description, and the service nothing."""

import os
import pathlib

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptd.daemon.answer_checks import COUNTED_FROM_BYTES, MAX_VALUES, check_size
from ckptd.daemon.answers import BadAnswer, Death
from ckptd.daemon.workers import WorkerDied
from tests.daemon.forged_answers import COMMAND, RAW, TOLD, UNTOLD
from tests.daemon.worker_jobs import opened
from tests.daemon.worker_pools import describe, make_pool

PLACES = ("config", "user", "hyper_parameters", "callbacks")


@pytest.mark.anyio
async def test_what_cannot_be_told_is_a_bad_answer_and_no_error_of_each_reader(tmp_path: pathlib.Path) -> None:
    """It was published, and each request for it then failed with 500 and a traceback in the log."""
    async with make_pool(command=COMMAND) as pool:
        for place in PLACES:
            for word in UNTOLD:
                with pytest.raises(WorkerDied, match="cannot be told") as died:
                    await describe(pool, tmp_path / f"{place}-{word}.ckpt", f"{place} {word}")
                assert died.value.how is Death.BAD_ANSWER, (place, word)
            for word in TOLD:
                description = await describe(pool, tmp_path / f"{place}-{word}.ckpt", f"{place} {word}")
                assert msgspec.json.encode(description), (place, word)


@pytest.mark.anyio
@pytest.mark.parametrize("word", RAW)
async def test_an_answer_that_explodes_is_never_decoded(word: str, tmp_path: pathlib.Path) -> None:
    """Of the 64 MB that an answer may have, one byte each made 5 GB of the service."""
    async with make_pool(workers=1, command=COMMAND) as pool:
        with pytest.raises(WorkerDied, match=r"holds more than|in more pieces") as died:
            await describe(pool, tmp_path / "a.ckpt", f"raw {word}")
        assert died.value.how is Death.BAD_ANSWER
        assert await describe(pool, tmp_path / "b.ckpt", "config nothing"), "it goes on"


@pytest.mark.anyio
@pytest.mark.root
async def test_no_child_holds_files_of_two_owners(tmp_path: pathlib.Path) -> None:
    """One could read the other through it, and have it told beside itself. Files of one owner share a child."""
    held: list[tuple[int, list[int]]] = []

    async def one(number: int) -> None:
        owner, path = 61_001 + number // 4 % 2, tmp_path / f"{number}.ckpt"
        with opened(path, "owners x") as (request, files):
            os.chown(files.checkpoint, owner, owner)
            files = msgspec.structs.replace(files, owner=owner)
            owners = (await pool.describe(request, files)).config
            assert isinstance(owners, list)
            held.append((owner, owners))

    async with make_pool(workers=1, command=COMMAND) as pool, anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(one, number)
    assert len(held) == 40
    assert [owner for owner, owners in held if set(owners) != {owner}] == []
    assert max(len(owners) for _, owners in held) > 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=30,
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(plain, max_size=20))
def test_values_are_counted_as_msgpack_writes_them(values: list[object]) -> None:
    """Counted wrongly, what follows a value would be taken for something else: here for a list that is too long."""
    many = b"\xdd" + MAX_VALUES.to_bytes(4, "big")
    fill = b"\xc6" + COUNTED_FROM_BYTES.to_bytes(4, "big") + bytes(COUNTED_FROM_BYTES)
    encoded = b"".join(map(msgspec.msgpack.encode, values))
    honest = b"\xdd" + (len(values) + 2).to_bytes(4, "big") + fill + encoded + b"\xc0"
    check_size(len(honest).to_bytes(4, "little") + honest)
    hostile = honest[:-1] + many
    with pytest.raises(BadAnswer):
        check_size(len(hostile).to_bytes(4, "little") + hostile)


def test_every_kind_of_msgpack_is_counted() -> None:
    """Those that msgspec never writes among them: fixed and long extensions, long texts of few bytes."""
    kinds = [bytes([0xD4 + n, 5]) + bytes(1 << n) for n in range(5)]
    kinds += [b"\xc7\x03\x05abc", b"\xc8\x00\x03\x05abc", b"\xc9\x00\x00\x00\x03\x05abc"]
    kinds += [b"\xd9\x01a", b"\xda\x00\x01a", b"\xdb\x00\x00\x00\x01a", b"\xca" + bytes(4), b"\xcb" + bytes(8)]
    kinds += [bytes([0xCC + n]) + bytes(1 << n) for n in range(4)] + [
        bytes([0xD0 + n]) + bytes(1 << n) for n in range(4)
    ]
    kinds += [
        b"\xdc\x00\x01\xc0",
        b"\xde\x00\x01\xc0\xc0",
        b"\xdf\x00\x00\x00\x01\xc0\xc0",
        b"\x81\xc0\xc0",
        b"\xff",
        b"\x7f",
    ]
    many = b"\xdd" + MAX_VALUES.to_bytes(4, "big")
    fill = b"\xc6" + COUNTED_FROM_BYTES.to_bytes(4, "big") + bytes(COUNTED_FROM_BYTES)
    for kind in kinds:
        honest = b"\x93" + fill + kind + b"\xc0"
        check_size(len(honest).to_bytes(4, "little") + honest)
        hostile = b"\x93" + fill + kind + many
        with pytest.raises(BadAnswer):
            check_size(len(hostile).to_bytes(4, "little") + hostile)
