"""The judges of the campaigns do find what is false: a lie of each kind is told to them."""

import errno
import pathlib
import time
from typing import Any

import msgspec
import pytest

from tests.service.campaign_writer import PARTIAL, Writer
from tests.service.campaigns import Contents, HealthSampler, History, Sample, Shadow, differences, facts_of
from tests.service.daemons import Daemon

DONE = [
    {"begin": 10.0, "end": 11.0, "after": {"a.ckpt": 0}, "passed": {"a.ckpt": [PARTIAL, 0]}},
    {"begin": 20.0, "end": 21.0, "after": {"a.ckpt": 1}, "passed": {"a.ckpt": [1]}},
    {"begin": 30.0, "end": 31.0, "after": {"a.ckpt": None, "b.ckpt": 1}, "passed": {}},
]


@pytest.fixture
def contents(tmp_path: pathlib.Path) -> Contents:
    return Contents(tmp_path / "contents", count=3)


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Daemon:
    return Daemon(tmp_path, tmp_path / "state")


def entry(contents: Contents, number: int, **fields: Any) -> dict[str, Any]:
    """As the wire shows one of the contents."""
    facts = contents.facts[number] | {"findings": [], "id": "id-a", "path": "a.ckpt", "revision": 1}
    return facts | fields


def sampled(daemon: Daemon, as_of: float, listed_at: float, *entries: dict[str, Any]) -> HealthSampler:
    """A sampler that saw the catalog once."""
    sampler = HealthSampler(daemon)
    claim = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(as_of)) + "Z"
    health = {"complete_as_of": claim, "catalog_status": "healthy", "checkpoint_count": 1, "by_health": {"valid": 1}}
    sampler.samples.append(Sample(listed_at, listed_at, health, {e["path"]: e for e in entries}))
    return sampler


@pytest.mark.parametrize(
    ("as_of", "listed_at", "number"),
    [(12, 13, 0), (12, 25, 1), (19, 22, 0), (9, 10.5, None), (32, 33, None), (29, 30.5, 1)],
)
def test_what_was_true_at_or_after_the_claimed_moment_is_no_lie(
    daemon: Daemon, contents: Contents, as_of: float, listed_at: float, number: int | None
) -> None:
    entries = [] if number is None else [entry(contents, number)]
    if listed_at > 31:
        entries.append(entry(contents, 1, path="b.ckpt"))
    assert sampled(daemon, as_of, listed_at, *entries).check_completeness(History(DONE), contents) == 1


@pytest.mark.parametrize(
    ("as_of", "listed_at", "number"), [(12, 13, None), (12, 13, 1), (22, 23, 0), (22, 23, 2), (32, 33, 1)]
)
def test_a_claim_that_outruns_the_list_is_found(
    daemon: Daemon, contents: Contents, as_of: float, listed_at: float, number: int | None
) -> None:
    entries = [] if number is None else [entry(contents, number)]
    with pytest.raises(AssertionError, match=r"a\.ckpt: complete as of"):
        sampled(daemon, as_of, listed_at, *entries).check_completeness(History(DONE), contents)


def test_a_whole_file_that_is_shown_as_being_written_is_a_lie(daemon: Daemon, contents: Contents) -> None:
    writing = entry(contents, 0, health="writing")
    assert sampled(daemon, 9, 10.5, writing).check_completeness(History(DONE), contents) == 1
    with pytest.raises(AssertionError, match="untrue"):
        sampled(daemon, 12, 13, writing).check_completeness(History(DONE), contents)


@pytest.mark.parametrize(
    "change",
    [{"catalog_status": "healthy", "complete_as_of": None}, {"checkpoint_count": 2}],
)
def test_health_that_contradicts_itself_is_found(daemon: Daemon, change: dict[str, Any]) -> None:
    sampler = sampled(daemon, 12, 13)
    sampler.check_claims()
    sampler.samples[0].health.update(change)
    with pytest.raises(AssertionError):
        sampler.check_claims()


def test_each_fact_that_differs_and_each_path_too_many_or_missing_is_named(contents: Contents) -> None:
    served = {"a.ckpt": entry(contents, 0), "old.ckpt": entry(contents, 1)}
    tree = {"a.ckpt": facts_of(entry(contents, 0, epoch=7)), "new.ckpt": facts_of(entry(contents, 1))}
    assert differences(served, tree) == [
        "a.ckpt: epoch is 7, not 0",
        "new.ckpt: not listed",
        "old.ckpt: listed, but not there",
    ]
    assert not differences(served, {path: facts_of(one) for path, one in served.items()})


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([("upsert", 5, "x.5.0"), ("upsert", 5, "x.5.0")], "revision 5 after 5"),
        ([("upsert", 5, "x.5.0"), ("upsert", 6, "x.4.0")], "went back from 5 to 4"),
        ([("upsert", 5, "x.5.0"), ("resumed", 7, "x.7.0")], "resumed at 7, not at 5"),
        ([("reset", 0, ""), ("complete", 3, "x.3.0")], "a snapshot of 3 entries had 0"),
    ],
)
def test_a_stream_that_repeats_goes_back_or_leaves_out_is_found(
    daemon: Daemon, contents: Contents, messages: list[tuple[str, int, str]], wrong: str
) -> None:
    shadow = Shadow(daemon)
    for kind, number, event_id in messages:
        entries = [entry(contents, 0, revision=number)]
        shadow.take({"type": kind, "revision": number, "total": number, "checkpoints": entries}, event_id)
    with pytest.raises(AssertionError, match=wrong):
        shadow.check_truth(History([]), contents)


@pytest.mark.parametrize("untrue", ["content", "deletion"])
def test_news_of_what_never_was_is_found(daemon: Daemon, contents: Contents, untrue: str) -> None:
    shadow = Shadow(daemon)
    shadow.take({"type": "upsert", "checkpoints": [entry(contents, 0)]}, "x.1.0")
    history = History(DONE[:2])
    shadow.check_truth(history, contents)
    if untrue == "content":
        shadow.take({"type": "upsert", "checkpoints": [entry(contents, 2, revision=2)]}, "x.2.0")
    else:
        shadow.take({"type": "delete", "checkpoints": [{"id": "id-a", "path": "a.ckpt"}]}, "x.2.0")
    with pytest.raises(AssertionError, match=r"a\.ckpt: told as"):
        shadow.check_truth(history, contents)


def test_a_save_that_finds_no_room_tells_that_its_directory_was_no_checkpoint_for_a_while(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [{"0_0.distcp": b"shard", ".metadata": b"metadata"}]
    writer = Writer(tmp_path, contents, tmp_path / "log", 1, "w0")

    def run(operation: str) -> None:
        monkeypatch.setattr(writer, "_operations", lambda: [(getattr(writer, operation), 1)])
        writer.run_one()

    run("_save_sharded")
    (path,) = msgspec.json.decode((tmp_path / "log").read_bytes())["after"]

    def find_no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(writer, "_fill", find_no_room)
    run("_overwrite_sharded")
    history = History(map(msgspec.json.decode, (tmp_path / "log").read_bytes().splitlines()))
    assert history.was_deleted(path, time.time())
    assert PARTIAL in history.ever(path, time.time())
