"""Answers cross the process boundary as they are, or not at all."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.catalog.description import CheckpointMetadata, Description
from ckptd.daemon.answers import (
    MAX_NODES,
    TENSORS_PER_PIECE,
    AnswerTooLarge,
    BadAnswer,
    ChangedAnswer,
    Death,
    Described,
    GaveUp,
    UnreadableAnswer,
    decode_answer,
    encode_answer,
    encode_description,
)
from ckptd.validators.inspection import FileIdentity, Inspection, TensorInfo

LIMIT = 8 << 20
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=30,
)
tensors = st.builds(
    TensorInfo,
    name=st.text(),
    dtype=st.text(),
    shape=st.lists(st.integers(0, 2**63)).map(tuple),
    stride=st.lists(st.integers(-(2**63), 2**63)).map(tuple),
    storage=st.text(),
    storage_offset=st.integers(0, 2**64 - 1),
    nbytes=st.integers(0, 2**64 - 1),
    role=st.sampled_from(["weights", "optimizer", "other"]),
    requires_grad=st.booleans(),
)


def _description(config: object = None, table: tuple[TensorInfo, ...] = ()) -> Description:
    return Description(
        inspection=Inspection(checkpoint_path="/a.ckpt", identity=FileIdentity(1, 2, 3, 4), tensors=table),
        findings=(),
        metadata=CheckpointMetadata(),
        config=config,
    )


def _tensor(index: int) -> TensorInfo:
    return TensorInfo(f"t{index}", "float32", (index,), (1,), str(index), 0, 4 * index, "weights")


def _decode(data: bytes) -> Description:
    head, *parts = decode_answer(data)
    assert isinstance(head, Described)
    table = tuple(tensor for part in parts for tensor in part)
    inspection = msgspec.structs.replace(head.description.inspection, tensors=table)
    return msgspec.structs.replace(head.description, inspection=inspection)


@given(plain, st.lists(tensors, max_size=5).map(tuple))
def test_a_description_survives_the_way(config: object, table: tuple[TensorInfo, ...]) -> None:
    description = _description(config, table)
    assert _decode(encode_description(description, LIMIT)) == description


def test_a_long_table_arrives_in_parts_and_in_order() -> None:
    table = tuple(map(_tensor, range(2 * TENSORS_PER_PIECE + 1)))
    data = encode_description(_description(None, table), LIMIT)
    assert [len(part) for part in list(decode_answer(data))[1:]] == [TENSORS_PER_PIECE, TENSORS_PER_PIECE, 1]
    assert _decode(data).tensors == table


@pytest.mark.parametrize(
    "answer",
    [ChangedAnswer("a"), UnreadableAnswer("b", 5), UnreadableAnswer("c", None), GaveUp(Death.LIMIT_MEMORY, "d")],
)
def test_the_other_answers_survive_the_way(answer: ChangedAnswer | UnreadableAnswer | GaveUp) -> None:
    assert list(decode_answer(encode_answer(answer))) == [answer]


@given(st.lists(tensors, max_size=20).map(tuple), plain)
def test_the_budget_is_never_less_than_the_encoding(table: tuple[TensorInfo, ...], config: object) -> None:
    """What passes the budget fits: else encoding could run out of memory, where msgspec crashes."""
    description = _description(config, table)
    size = len(encode_description(description, LIMIT))
    with pytest.raises(AnswerTooLarge):
        encode_description(description, size - 1)


def test_values_that_are_shared_count_as_often_as_they_are_written() -> None:
    value: list[object] = [0]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(AnswerTooLarge):
        encode_description(_description(value), 1 << 40)


def test_more_values_than_any_configuration_has_are_refused() -> None:
    with pytest.raises(AnswerTooLarge):
        encode_description(_description([None] * MAX_NODES), 1 << 40)


@given(st.binary())
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        list(decode_answer(data))


@given(st.data())
def test_damaged_answers_are_refused_or_are_answers(data: st.DataObject) -> None:
    """Whatever a child writes, the pool sees typed data or one kind of error."""
    encoded = bytearray(encode_description(_description({"lr": [1, 2.5, "x"]}, tuple(map(_tensor, range(3)))), LIMIT))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    try:
        head, *parts = decode_answer(bytes(encoded[:cut]))
    except BadAnswer:
        return
    assert isinstance(head, Described | ChangedAnswer | UnreadableAnswer | GaveUp)
    assert all(isinstance(tensor, TensorInfo) for part in parts for tensor in part)


def test_a_deeply_nested_answer_is_refused() -> None:
    nested = b"\x91" * 100_000 + b"\xc0"
    head = msgspec.msgpack.encode({"type": "described", "description": {"config": 0}, "pieces": 0})
    for body in (nested, head.replace(b"config\x00", b"config" + nested)):
        with pytest.raises(BadAnswer):
            list(decode_answer(len(body).to_bytes(4, "little") + body))


def test_bytes_after_an_answer_are_refused() -> None:
    with pytest.raises(BadAnswer, match="followed by 3 bytes"):
        list(decode_answer(encode_answer(ChangedAnswer("a")) + b"abc"))
