"""A stranger's YAML or JSON is plain data or refused; it never runs, hangs or fills the memory."""

import json

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.catalog.documents import MAX_BYTES, MAX_DEPTH, MAX_NODES, DocumentError, load_document

BILLION_LAUGHS = b"a: &a [lol, lol]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c]\n" % (c, c, *[c - 1] * 4) for c in range(ord("b"), ord("z"))
)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (BILLION_LAUGHS, "anchors"),
        (b"a: &x 1", "anchors"),
        (b"- &x [1]\n- *x", "anchors"),
        (b"!!python/object/apply:os.system ['touch /tmp/ckptd-was-here']", "tags"),
        (b"a: !!python/name:os.system", "tags"),
        (b"a: !!str 5", "tags"),
        (b"a: !local 5", "tags"),
        (b"[" * 500_000, "deeper"),
        (b"{a: " * 200_000, "deeper"),
        (b"- " * 400_000, "deeper"),
        (b"? " * 300_000, "plain text"),
        (b"[1]: 2", "plain text"),
        (b"- a\n" * (MAX_NODES + 1), "more than"),
        (b"a: " + b"x" * 10_000_000, "larger than"),
        (b"a: 1\n---\nb: 2\n", "second document"),
        (b"a: b: c", "not YAML"),
        (b"a: \xff", "not YAML"),
        (b"\x00", "not YAML"),
        (b"%YAML 9.9\n---\na: 1", "not YAML"),
    ],
)
def test_yaml_that_asks_for_more_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        load_document(data, is_json=False)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 500_000, "deeper"),
        (b"[" * 200 + b"]" * 200, "deeper"),
        (b"[" + b"1," * MAX_NODES + b"1]", "more than"),
        (b'"' + b"x" * MAX_BYTES + b'"', "larger than"),
        (b"{'a': 1}", "not JSON"),
        (b'"\xed\xa0\x80"', "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_json_that_asks_for_more_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        load_document(data, is_json=True)


def test_the_allowed_depth_is_allowed() -> None:
    for is_json in (True, False):
        assert load_document(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, is_json=is_json)


def test_text_that_only_looks_like_a_number_keeps_its_spelling() -> None:
    data = b"date: 2025-10-11\ntime: 10:20:30\nid: 0123\nhex: 0x1f\nbig: 99999999999999999999\ninf: .inf\nref: ${a.b}\n"
    assert load_document(data, is_json=False) == {
        "date": "2025-10-11",
        "time": "10:20:30",
        "id": "0123",
        "hex": "0x1f",
        "big": "99999999999999999999",
        "inf": ".inf",
        "ref": "${a.b}",
    }


def test_plain_scalars_are_what_pyyaml_says() -> None:
    data = b"a: 1\nb: -2.5\nc: true\nd: no\ne: ~\nf: ''\ng: '5'\nh: [1, 2.0e+3]\n2: x\ntrue: y\n"
    loaded = load_document(data, is_json=False)
    expected = yaml.safe_load(data)
    assert loaded == {"2": expected.pop(2), "true": expected.pop(True), **expected}


def test_json_of_older_writers_with_nan_and_half_surrogates_is_encodable() -> None:
    loaded = load_document(b'{"a": NaN, "b": 1e999, "c": "\\ud800", "d": "\\u00e9"}', is_json=True)
    assert loaded["a"] == "NaN"
    assert loaded["d"] == "\u00e9"
    msgspec.json.encode(loaded)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(PLAIN)
def test_json_reads_back_as_it_was(value: object) -> None:
    assert load_document(json.dumps(value).encode(), is_json=True) == value


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text("[]{}:,-?&*!|>'\"#%@ \nab1.~", max_size=200).map(str.encode), st.booleans())
def test_any_bytes_are_plain_data_or_a_document_error(data: bytes, is_json: bool) -> None:
    try:
        value = load_document(data, is_json=is_json)
    except DocumentError:
        return
    msgspec.msgpack.encode(value)
