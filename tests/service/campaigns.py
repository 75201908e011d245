"""Campaigns: writers, a client with a shadow of the catalog, samples of what health says; and how all is compared."""

import collections
import contextlib
import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import httpx
import msgspec
import yaml

from ckptd.catalog.builder import CatalogOptions, build_catalog
from ckptd.catalog.sidecar import is_ours
from tests.catalog.checkpoint_directories import dcp_files, put
from tests.service.campaign_writer import JUNK, PARTIAL, State
from tests.service.checkpoints import checkpoint_bytes
from tests.service.daemons import DEADLINE_S, Daemon, epoch_of, eventually

ABANDONED_S = 600.0
"""Incomplete files stay `writing` for the whole campaign, on both sides of a comparison."""
SETTINGS: Mapping[str, object] = {
    "sidecar_delay_s": 0.1,
    "sweep_min_s": 0.2,
    "sweep_cpu": 0.5,
    "quiet_s": 0.2,
    "abandoned_s": ABANDONED_S,
    "heartbeat_s": 0.5,
}
SHARDED = 4
"""Contents that are directories."""
_WRITER = pathlib.Path(__file__).with_name("campaign_writer.py")
_FACTS = (
    "size_bytes",
    "modified_at",
    "format",
    "epoch",
    "global_step",
    "n_parameters",
    "weights_bytes",
    "content_id",
    "safety",
    "has_config",
    "health",
)


# ---- the one comparison ----------------------------------------------------------------------------------------


def facts_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says of its file: all but what depends on when a sidecar is written."""
    findings = sorted(found["code"] for found in entry["findings"] if not found["code"].startswith("metadata."))
    return {name: entry.get(name) for name in _FACTS} | {"findings": findings}


def tree_facts(root: pathlib.Path, *, abandoned_s: float = ABANDONED_S) -> dict[str, dict[str, Any]]:
    """What a fresh build of the tree says, by path; everything is read anew."""
    built = build_catalog(CatalogOptions(roots=(str(root),), abandoned_s=abandoned_s))
    assert not built.unreachable
    return {entry.path: facts_of(msgspec.to_builtins(entry)) for entry in built.entries}


def differences(served: Mapping[str, Mapping[str, Any]], tree: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where entries as served and the facts of the tree do not agree, in words; empty when the catalog is right."""
    found = [f"{path}: not listed" for path in tree.keys() - served.keys()]
    found += [f"{path}: listed, but not there" for path in served.keys() - tree.keys()]
    for path in tree.keys() & served.keys():
        said, true = facts_of(served[path]), tree[path]
        found += [f"{path}: {name} is {true[name]!r}, not {said[name]!r}" for name in said if said[name] != true[name]]
    return sorted(found)


def assert_equal_to_tree(daemon: Daemon, root: pathlib.Path) -> None:
    """The catalog equals the tree now. The tree must be quiet."""
    wrong = differences(daemon.entries(), tree_facts(root))
    assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)} differences; the log: {daemon.log_file}"


def wait_quiet(daemon: Daemon, *, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """Wait until nothing is left to be done; returns the health then. The tree must be quiet."""

    def quiet() -> dict[str, Any] | None:
        health = daemon.health()
        writing = health["by_health"].get("writing", 0)
        return health if health["pending"] <= writing and not health["writing_sidecars"] else None

    return eventually(quiet, "nothing is pending", deadline_s=deadline_s, every_s=0.1)


def assert_quiet_tree_is_fully_described(daemon: Daemon, root: pathlib.Path) -> None:
    """Every valid checkpoint has its metadata, beside it and in the list; nothing of ours is left over or torn."""
    wait_quiet(daemon)
    daemon.wait_complete()
    wait_quiet(daemon)
    without = [path for path, e in daemon.entries().items() if e["health"] == "valid" and not e["has_metadata"]]
    assert not without
    check_sidecars(root)
    eventually(lambda: not leftovers(root), f"no temporary file is left: {leftovers(root)}")
    eventually(lambda: not orphans(root), f"no sidecar outlives its checkpoint: {orphans(root)}")


def check_sidecars(root: pathlib.Path) -> int:
    """Every sidecar in the tree parses and is ours, byte for byte; returns how many there are."""
    paths = list(root.rglob("*.metadata.yaml"))
    seen = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            assert is_ours(data), f"{path} is torn: {data[-200:]!r}"
            # libyaml: in Python alone this took longer than all the rest of a round
            assert yaml.load(data, yaml.CSafeLoader)["schema_version"] == "1.0"
            seen += 1
    return seen


def leftovers(root: pathlib.Path) -> list[str]:
    """Our temporary files."""
    return [str(path) for path in root.rglob(".*.ckptd-*")]


def orphans(root: pathlib.Path) -> list[str]:
    """Sidecars without a checkpoint."""
    return [str(p) for p in root.rglob("*.metadata.yaml") if not p.with_name(p.name[: -len(".metadata.yaml")]).exists()]


# ---- contents and writers --------------------------------------------------------------------------------------


class Contents:
    """Different small checkpoints, numbered, in a directory of their own: files, then `SHARDED` directories."""

    def __init__(self, directory: pathlib.Path, count: int = 12) -> None:
        self.directory = directory
        directory.mkdir()
        for number in range(count):
            data = checkpoint_bytes(number, epoch=number, elements=4 + number)
            (directory / f"{number:03}.ckpt").write_bytes(data)
        for number in range(count, count + SHARDED):
            put(directory / f"{number:03}.sharded", dcp_files(number))
        facts = tree_facts(directory)
        self.facts = [facts[name] for name in sorted(facts)]

    def data(self, number: int) -> bytes:
        """The bytes of one of them."""
        return (self.directory / f"{number:03}.ckpt").read_bytes()

    def is_content(self, entry: Mapping[str, Any], number: int) -> bool:
        """Whether an entry describes this content, as far as the bytes decide."""
        said, true = facts_of(entry), self.facts[number]
        return all(said[name] == true[name] for name in said if name not in ("modified_at", "has_config", "findings"))


class Writers:
    """Processes that change a tree; see `campaign_writer`."""

    def __init__(
        self, root: pathlib.Path, contents: Contents, logs: pathlib.Path, *, count: int, seed: int, shared: bool
    ) -> None:
        logs.mkdir(exist_ok=True)
        self.logs = [logs / f"writer{number}.jsonl" for number in range(count)]
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-S", str(_WRITER), str(root), str(contents.directory), str(log)),
                    *(str(1000 * seed + number), "" if shared else f"w{number}"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            for number, log in enumerate(self.logs)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            with process:
                process.kill()

    def start(self, operations: int) -> None:
        """Have each of them begin so many operations."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{operations}\n")

    def wait(self) -> float:
        """Wait until all have done what `start` asked for; returns the time then, epoch seconds."""
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
        return time.time()

    def history(self) -> "History":
        """What they did so far."""
        return History(
            json.loads(line) for log in self.logs if log.exists() for line in log.read_text().splitlines() if line
        )


class _Step(NamedTuple):
    begin: float
    end: float
    after: State
    passed: tuple[State, ...]


class History:
    """What each path held, and when. Each path is changed by one process, so its steps do not overlap."""

    def __init__(self, operations: Iterable[Mapping[str, Any]]) -> None:
        self._steps: dict[str, list[_Step]] = collections.defaultdict(list)
        for done in operations:
            for path, after in done["after"].items():
                passed = tuple(done["passed"].get(path, [after]))
                self._steps[path].append(_Step(done["begin"], done["end"], after, passed))
        for steps in self._steps.values():
            steps.sort()

    @property
    def paths(self) -> list[str]:
        """Every path that ever was."""
        return list(self._steps)

    def ever(self, path: str, until: float) -> set[State]:
        """All that a path held at some time up to `until`, absence at the beginning included."""
        states: set[State] = {None}
        for step in self._steps.get(path, ()):
            if step.begin <= until:
                states |= {step.after, *step.passed}
        return states

    def since(self, path: str, moment: float, until: float) -> set[State]:
        """All that a path held at some time from `moment` up to `until`."""
        states: set[State] = {None}
        for step in self._steps.get(path, ()):
            if step.begin > until:
                break
            if step.end < moment:
                states = {step.after}
            else:
                states |= {step.after, *step.passed}
        return states

    def was_deleted(self, path: str, until: float) -> bool:
        """Whether the name was taken away at some time up to `until`."""
        return any(step.begin <= until and None in (step.after, *step.passed) for step in self._steps.get(path, ()))


def agrees(entry: Mapping[str, Any] | None, states: set[State], contents: Contents) -> bool:
    """Whether what is said of a path is true of one of the states."""
    if entry is None:
        return None in states
    if entry["health"] == "valid":
        return any(isinstance(state, int) and contents.is_content(entry, state) for state in states)
    return PARTIAL in states or (JUNK in states and entry["health"] == "invalid")


# ---- what health says ------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """The health, and the list that was asked for right after it. Epoch seconds."""

    asked_at: float
    listed_at: float
    health: dict[str, Any]
    entries: dict[str, dict[str, Any]]


class HealthSampler:
    """Asks for the health, then for the list, again and again, over restarts; judged afterwards."""

    def __init__(self, daemon: Daemon, *, lists: bool = True) -> None:
        self.samples: list[Sample] = []
        self._daemon = daemon
        self._lists = lists
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(0.05 if self._lists else 0.2)  # the last sample shows how it ended
            with contextlib.suppress(httpx.TransportError, FileNotFoundError, ValueError):
                asked_at = time.time()
                health = self._daemon.health()
                entries = self._daemon.entries() if self._lists else {}
                self.samples.append(Sample(asked_at, time.time(), health, entries))

    def check_claims(self) -> None:
        """Every sample is consistent in itself, and never healthy before a first sweep has ended."""
        assert self.samples
        for sample in self.samples:
            health = sample.health
            assert health["checkpoint_count"] == sum(health["by_health"].values())
            if health["complete_as_of"] is None:
                assert health["catalog_status"] != "healthy"
            else:
                assert epoch_of(health["complete_as_of"]) <= sample.listed_at

    def check_completeness(self, history: History, contents: Contents) -> int:
        """Whatever happened before `complete_as_of` was listed then; returns how many samples claimed anything."""
        claims = 0
        wrong = []
        for sample in self.samples:
            if sample.health["complete_as_of"] is None:
                continue
            claims += 1
            as_of = epoch_of(sample.health["complete_as_of"])
            for path in history.paths:
                states = history.since(path, as_of, sample.listed_at)
                entry = sample.entries.get(path)
                if not agrees(entry, states, contents):
                    wrong.append(f"{path}: complete as of {as_of:.3f}, held {states}, listed as {shown(entry)}")
        assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)} untrue claims in {claims} samples"
        return claims


def shown(entry: Mapping[str, Any] | None) -> str:
    """An entry in a few words, for a failure."""
    if entry is None:
        return "nothing"
    names = ("health", "epoch", "size_bytes", "content_id", "revision")
    return " ".join(f"{name}={entry[name]}" for name in names)


# ---- a client with a shadow ------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One entry or deletion that the shadow was told."""

    at: float
    path: str
    entry: dict[str, Any] | None


class Shadow:
    """A listener that keeps its own copy of the catalog, and comes back with its last id whenever it is cut off."""

    def __init__(self, daemon: Daemon) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.told: list[Told] = []
        self.wrong: list[str] = []
        self.connections = self.resumed = self.resets = 0
        self.revision = 0
        self._daemon = daemon
        self._last_id: str | None = None
        self._reached: dict[str, int] = {}
        self._synced = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            with contextlib.suppress(httpx.TransportError, FileNotFoundError, ValueError):
                for message in self._messages():
                    with self._lock:
                        self.take(message, message.pop("_id"))
                    if self._stop.is_set():
                        return
            self._synced = False

    def _messages(self) -> Iterator[dict[str, Any]]:
        with self._daemon.events(include_invalid="true", last_event_id=self._last_id or "") as messages:
            self.connections += 1
            yield from messages

    def take(self, message: dict[str, Any], event_id: str | None) -> None:
        """Take one message, with its id if it has one."""
        kind = message["type"]
        match kind:
            case "reset":
                self.resets += 1
                self._synced = False
                self.entries = {}
            case "resumed":
                self.resumed += 1
                self._synced = True
                if message["revision"] != self.revision:
                    self.wrong.append(f"resumed at {message['revision']}, not at {self.revision}")
            case "batch":
                for entry in message["checkpoints"]:
                    self._upsert(entry)
            case "upsert":
                for entry in message["checkpoints"]:
                    if entry["revision"] <= self.revision:
                        self.wrong.append(f"{entry['path']}: revision {entry['revision']} after {self.revision}")
                    self._upsert(entry)
            case "delete":
                for gone in message["checkpoints"]:
                    self.entries.pop(gone["id"], None)
                    self.told.append(Told(time.time(), gone["path"], None))
            case "complete":
                self._synced = True
                if message["total"] != len(self.entries):
                    self.wrong.append(f"a snapshot of {message['total']} entries had {len(self.entries)}")
        if event_id is not None:
            self._reach(event_id)

    def _upsert(self, entry: dict[str, Any]) -> None:
        self.entries[entry["id"]] = entry
        self.told.append(Told(time.time(), entry["path"], entry))

    def _reach(self, event_id: str) -> None:
        self._last_id = event_id or None
        if not event_id:
            return
        instance, revision = event_id.split(".")[0], int(event_id.split(".")[1])
        if revision < self._reached.get(instance, 0):
            self.wrong.append(f"{instance} went back from {self._reached[instance]} to {revision}")
        self._reached[instance] = self.revision = revision

    # ---- judged --------------------------------------------------------------------------------------------

    def assert_caught_up(self, *, deadline_s: float = DEADLINE_S) -> None:
        """What was told adds up to what is listed, revision for revision. The tree must be quiet."""

        def equal() -> bool:
            before = self._daemon.health()["revision"]
            listed = {entry["id"]: entry for entry in self._daemon.entries().values()}
            with self._lock:
                return self._synced and self.revision == before and self.entries == listed

        eventually(equal, "the shadow equals the list", deadline_s=deadline_s)

    def check_truth(self, history: History, contents: Contents) -> None:
        """Nothing that was told was never true, and nothing was told twice or backwards."""
        assert not self.wrong, "\n".join(self.wrong[:20])
        wrong = untrue(self.told, history, contents)
        assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)} of {len(self.told)}"


def untrue(told_things: Iterable[Told], history: History, contents: Contents) -> list[str]:
    """What was told of the paths of a history and was never true of them, in words."""
    wrong = []
    for told in told_things:
        states = history.ever(told.path, told.at)
        if told.entry is None:
            if not history.was_deleted(told.path, told.at):
                wrong.append(f"{told.path}: told as deleted, which it never was")
        elif not agrees(told.entry, states - {None}, contents):
            wrong.append(f"{told.path}: told as {shown(told.entry)}, had only {states}")
    return wrong


def built_lines(daemon: Daemon) -> list[int]:
    """The numbers of entries in the log's lines about builds."""
    lines = [line for line in daemon.log().splitlines() if "catalog built: " in line]
    return [int(line.partition("catalog built: ")[2].split()[0]) for line in lines]
