"""Searches: what each term of `q` finds, in entries and in the lines of tokens behind them, and what is refused."""

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.catalog.description import CheckpointMetadata, Description
from ckptd.catalog.entry import FindingRef, Health
from ckptd.catalog.matching import Matcher
from ckptd.catalog.query import Query, QueryError
from ckptd.catalog.search import MAX_TERMS, SearchError, parse_search
from ckptd.catalog.search_text import MAX_TEXT, search_text, text_key, text_of
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import FileIdentity, Inspection, Plain
from tests.catalog.catalog_records import record_of
from tests.catalog.searched import LinesInMemory, indexed, searching

DAY = 86_400 * 10**9
OCTOBER_11 = int(dt.datetime(2025, 10, 11, tzinfo=dt.UTC).timestamp()) * 10**9

A = record_of(
    "dbnet_resnet50/2025-10-11/epoch=28-step=100.ckpt",
    modified_ns=OCTOBER_11 + DAY - 1,
    exp_name="DBNet baseline",
    display_name="DBNet baseline/epoch=28-step=100",
    architecture="dbnet",
    backbone="resnet50d.ra4_in1k",
    run_id="2025-10-11",
    epoch=28,
    size_bytes=9_000_000,
    n_parameters=25_000_000,
    metrics={"hmean": 0.85, "validation_loss": 0.2},
    findings=(FindingRef("metadata.missing", Severity.WARNING),),
    dtypes=("float32",),
    created_at="2025-10-11T08:00:00Z",
)
B = record_of(
    "lr=0.001,batch=32/größe/last.ckpt",
    modified_ns=OCTOBER_11 + DAY,
    exp_name="craft",
    architecture="craft",
    epoch=280,
    size_bytes=11_000_000,
    health=Health.OFFLINE,
    has_metadata=True,
    metrics={"hmean": 0.8},
)
C = record_of("s3-copy/10:30:00/best-v1.ckpt", modified_ns=OCTOBER_11 - 1, metrics={"val/f1": 0.5})


def found(q: str, lines: dict[str, Plain] | None = None) -> str:
    """Which of A, B and C `q` finds. `lines`: what is behind each."""
    kept = LinesInMemory()
    records = {
        name: searching(record, kept, (lines or {}).get(name)) for name, record in (("A", A), ("B", B), ("C", C))
    }
    matcher = Matcher(Query(q=q), kept)
    matcher.prepare()
    return "".join(name for name, record in records.items() if matcher(record))


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("", "ABC"),
        ("DBNET", "A"),
        ("esnet5", "A"),
        ("net base", "A"),
        ("-dbnet", "BC"),
        ("ckpt -last -v1", "A"),
        ('"-v1"', "C"),
        ('"dbnet baseline"', "A"),
        ('"baseline dbnet"', ""),
        ("resn*", "A"),
        ("esn*", ""),
        ("GRÖSSE", "B"),
        ("groesse", ""),
        ("epoch=28-step=100.ckpt", "A"),
        ("epoch=28", "A"),
        ("epoch=2", ""),
        ("epoch=280", "B"),
        ("lr=0.001,batch=32", "B"),
        ("lr=0.00", "B"),
        ("10:30:00", "C"),
        ("exp_name:craft", "B"),
        ("exp_name:CRAFT", "B"),
        ("exp_name:cra", ""),
        ("exp_name:cra*", "B"),
        ('exp_name:"dbnet baseline"', "A"),
        ("-exp_name:craft", "AC"),
        ("architecture:dbnet", "A"),
        ("backbone:resnet50*", "A"),
        ("path:größe", "B"),
        ("health:offline", "B"),
        ("health:offline,valid", "ABC"),
        ("finding:metadata.missing", "A"),
        ("finding:metadata.*", "A"),
        ("dtype:float32", "A"),
        ("has_metadata:true", "B"),
        ("-has_metadata:yes", "AC"),
        ("epoch:28", "A"),
        ("epoch:20..28", "A"),
        ("epoch:29..", "B"),
        ("epoch>28", "B"),
        ("epoch>=28", "AB"),
        ("epoch<280", "A"),
        ("-epoch<280", "BC"),
        ("size<10MB", "AC"),
        ("size_bytes>10.4MiB", "B"),
        ("n_parameters>=25M", "A"),
        ("parameters<0.1B", "A"),
        ("hmean>0.8", "A"),
        ("hmean>=0.8", "AB"),
        ("hmean:0.8", "B"),
        ("val/f1:0.5", ""),
        ("val/f1=0.5", "C"),
        ("metrics.val/f1:0.5", "C"),
        ("val/f1:0.4..0.5", "C"),
        ("hmean=0.80", "B"),
        ("hmean:0.8..0.9", "AB"),
        ("val_loss<0.3", "A"),
        ("val/f1<=0.5", "C"),
        ("metrics.hmean<0.81", "B"),
        ("unheard_of>0", ""),
        ("modified:2025-10-11", "A"),
        ("modified:2025-10-10..2025-10-11", "AC"),
        ("modified:2025-10-11..2025-10-12", "AB"),
        ("modified>2025-10-11", "B"),
        ("modified>=2025-10-11", "AB"),
        ("modified<2025-10-11", "C"),
        ("modified<=2025-10-11", "AC"),
        ("modified>=2025-10-12T00:00:00Z", "B"),
        ("modified>=2025-10-12T02:00:00+02:00", "B"),
        ("created:2025-10-11", "A"),
    ],
)
def test_each_term_finds_what_it_says_in_entries(q: str, expected: str) -> None:
    assert found(q) == expected


LINES: dict[str, Plain] = {
    "A": {"optimizer": {"name": "AdamW", "lr": 0.001, "betas": [0.9, 0.999]}, "data": {"path": "/data/ImageNet/train"}},
    "B": {"optimizer": {"name": "SGD", "lr": 0.0015, "nesterov": True}, "seed": None, "max_epochs": 10},
}


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("adam", "A"),
        ("dam", ""),
        ("adamw sgd", ""),
        ("-adamw", "BC"),
        ("optimizer.lr:0.001", "A"),
        ("optimizer.lr:1e-3", "A"),
        ("lr:.001", "A"),
        ("config.optimizer.lr:0.001", "A"),
        ("hyper_parameters.optimizer.lr:0.001", "A"),
        ("-lr:0.001", "BC"),
        ("lr:0.001*", "AB"),
        ("lr:*", "AB"),
        ("optimizer:0.001", ""),
        ("izer.lr:0.001", ""),
        ("name:ADAMW", "A"),
        ("betas:0.999", "A"),
        ("nesterov:true", "B"),
        ("seed:null", "B"),
        ("seed:none", "B"),
        ("data.path:/data/imagenet/train", "A"),
        ("imagenet/train", "A"),
        ('"imagenet train"', "A"),
        ('"imagenet tra"', ""),
        ("imagenet/tra", "A"),
        ("0.001", "AB"),
        ("1e-3", "A"),
        ("max_epochs", "B"),
        ("max_epochs:10", "B"),
        ("max_epochs=10", "B"),
        ("epochs:10", ""),
        ("craft sgd", "B"),
        ('"sgd optimizer"', ""),
    ],
)
def test_each_term_finds_what_it_says_in_hyper_parameters_and_config(q: str, expected: str) -> None:
    # B's own path holds 0.001 as well.
    assert found(q, LINES) == expected


@pytest.mark.parametrize(
    ("q", "token", "allowed"),
    [
        ('dbnet "batch norm', '"batch', "close the quote"),
        ('"a"b', '"a"b', "between the quotes"),
        ("a*b", "a*b", "end of a word"),
        ("*", "*", "end of a word"),
        ("dbnet -health:fine", "-health:fine", "writing, valid, invalid, offline"),
        ("safety:quite", "safety:quite", "safe"),
        ("format:hdf5", "format:hdf5", "safetensors"),
        ("finding:metadata.absent", "finding:metadata.absent", "metadata.missing"),
        ("has_config:maybe", "has_config:maybe", "has_config:true"),
        ("epoch>x", "epoch>x", "a number"),
        ("epoch>", "epoch>", "a number"),
        ("epoch>3MB", "epoch>3MB", "a number"),
        ("epoch:", "epoch:", "a number"),
        ("size>10XB", "size>10XB", "a unit (b, k, kb"),
        ("hmean>high", "hmean>high", "a number"),
        ("exp_name>3", "exp_name>3", "takes a colon"),
        ("modified:yesterday", "modified:yesterday", "2025-10-11..2025-10-12"),
        ("modified>2025-13-01", "modified>2025-13-01", "2025-10-11"),
        ('exp_name:a"b"', 'exp_name:a"b"', "the whole value between quotes"),
        (" ".join(f"w{n}" for n in range(MAX_TERMS + 1)), f"w{MAX_TERMS}", "at most 32 terms"),
        ("x" * 1001, "x" * 40 + "…", "at most 1000 characters"),
    ],
)
def test_a_token_that_cannot_be_used_is_named_with_what_is_allowed(q: str, token: str, allowed: str) -> None:
    with pytest.raises(SearchError) as refused:
        parse_search(q)
    assert refused.value.token == token
    assert allowed in refused.value.remedy
    with pytest.raises(QueryError) as named:
        Query(q=q).check()
    assert (named.value.field, named.value.value) == ("q", token)


@given(st.text(max_size=60))
def test_any_text_is_searched_for_or_refused_and_nothing_else(q: str) -> None:
    try:
        terms = parse_search(q)
    except SearchError:
        return
    for record in (A, B, C):
        assert isinstance(Matcher(Query(q=q))(record), bool)
    assert bool(terms) == bool(q.split())


@given(st.text(st.characters(exclude_characters='"*:<>=-'), min_size=1, max_size=20).filter(str.strip))
def test_whatever_the_path_holds_is_found_by_any_piece_of_it(text: str) -> None:
    record = record_of("runs/x.ckpt", display_name=text)
    for word in text.split():
        assert Matcher(Query(q=word))(record)
        assert Matcher(Query(q=word[len(word) // 2 :]))(record)


WORDS = st.sampled_from(["adam", "adamw", "sgd", "lr", "0.001", "0.0015", "1e-3", "10", "größe", "a b", "a/b", "x_y"])
PLAIN = st.recursive(
    WORDS | st.sampled_from([True, None, 3, 0.25, 1e-7, "…\ud800", "'\"", "", "日本語"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
QUERIES = st.one_of(
    WORDS.map(lambda word: word.split()[0]),
    WORDS.map(lambda word: f'"{word}"'),
    WORDS.map(lambda word: f"{word.split()[0]}*"),
    st.tuples(WORDS, WORDS).map(lambda pair: f'{pair[0].split()[0]}:"{pair[1]}"'),
    st.tuples(WORDS, WORDS).map(lambda pair: f"{pair[0].split()[0]}:{pair[1][:2].split()[0]}*"),
)


@settings(max_examples=60)
@given(st.lists(st.dictionaries(WORDS, PLAIN, max_size=3), min_size=1, max_size=6), st.lists(QUERIES, max_size=12))
def test_the_index_and_a_look_at_the_line_agree(documents: list[Plain], queries: list[str]) -> None:
    """What lists ask of FTS5, streams ask of single lines."""
    lines = [text_of([plain]) for plain in documents]
    with indexed(lines) as texts:
        assert texts.is_indexed
        for q in queries:
            (term,) = parse_search(q)
            looked_at = {text_key(line) for line in lines if line and term.in_line(line)}
            assert texts.find(term).keys == looked_at, q
            texts.is_indexed = False  # as in a build of SQLite without FTS5
            assert texts.find(term).keys == looked_at, q
            texts.is_indexed = True


@given(PLAIN)
def test_a_line_is_bounded_and_holds_nothing_that_would_split_it_otherwise(plain: Plain) -> None:
    line = text_of([plain] * 3)
    assert len(line) <= MAX_TEXT
    assert not {'"', "'", "\n", "\t", "  "} & {*line, *([] if "  " not in line else ["  "])}
    assert line == line.strip()
    assert text_of([plain]) == line, "each value once"


def test_a_line_of_a_huge_config_is_cut_at_a_value_and_hyper_parameters_come_first() -> None:
    config = {f"key{n}": f"value number {n}" for n in range(5_000)}
    line = search_text(described({"lr": 0.5}, config))
    assert len(line) <= MAX_TEXT
    assert line.startswith("lr 0.5 /lr =0.5 key0 ")
    assert line.split()[-1].startswith("=value_number_")


def test_what_is_searched_of_a_description_is_hyper_parameters_config_and_the_keys_of_people() -> None:
    description = described({"lr": 0.5}, {"data": {"root": "/d"}}, user={"note": "Good one"}, wandb_run_id="1a2b3c")
    line = f" {search_text(description)} "
    for token in ("/lr =0.5", "/data /root =/d", "good", "/note =good_one", "/wandb_run_id =1a2b3c"):
        assert f" {token} " in line
    assert search_text(described(None, None)) == ""
    assert text_key("") is None


def described(hyper_parameters: dict[str, Plain] | None, config: Plain, **more: object) -> Description:
    inspection = Inspection(
        checkpoint_path="/outputs/a.ckpt", identity=FileIdentity(1, 1, 1, 1), hyper_parameters=hyper_parameters
    )
    metadata = CheckpointMetadata(wandb_run_id=more.pop("wandb_run_id", None))  # type: ignore[arg-type]
    return Description(inspection=inspection, findings=(), metadata=metadata, config=config, **more)  # type: ignore[arg-type]
