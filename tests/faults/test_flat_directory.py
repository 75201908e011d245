"""One directory of 100,000 checkpoints: all are known, a change there costs what it costs elsewhere, none is missed."""

import contextlib
import os
import pathlib
import re
import sqlite3
import time
from collections.abc import Iterator

import httpx
import msgspec
import pytest

from ckptd.catalog.description import Description
from ckptd.catalog.entry import Health, MetadataSource, checkpoint_id, make_record
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import Found, scan_tree
from ckptd.catalog.state import State
from ckptd.catalog.store import Catalog, Change
from tests.daemon.real_mounts import mount, unmount
from tests.faults.faulty_services import assert_log_is_bounded
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(600)]
COUNT = 100_000
NAMES_OF_ONE = 10
"""Hard links: a tenth of the memory, and a change of one file is told of one of its names only."""
GENEROUS_S = 300.0
SETTINGS = {"verify": "none", "sidecars": "off", "no_export_index": None, "build_degraded_s": 240}
FEW = COUNT // 20
"""Looks at all the names would be twenty times as many."""


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """In memory: what is tried is the daemon, not the disk."""
    path = tmp_path / "outputs"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(path))
    try:
        yield path
    finally:
        unmount(path)


def fill(directory: pathlib.Path) -> None:
    data = checkpoint_bytes(1, elements=2)
    top = os.fsencode(directory)
    for number in range(0, COUNT, NAMES_OF_ONE):
        first = top + b"/e%06d.ckpt" % number
        with open(first, "wb") as file:
            file.write(data)
        for other in range(number + 1, number + NAMES_OF_ONE):
            os.link(first, top + b"/e%06d.ckpt" % other)


def remember(daemon: Daemon, outputs: pathlib.Path) -> None:
    """Have the state of a stopped daemon know them all, as if it had read each: that would take it minutes."""
    root = Root(os.fsencode(outputs))
    state = State.open(str(daemon.state), boot_id="", clock=time.time)
    loaded = state.load()
    catalog = Catalog(loaded.instance)
    catalog.load(loaded.records, loaded.tombstones, loaded.revision, loaded.floor)
    first = checkpoint_id(root.name, b"first.ckpt")
    known = state.full_description(first)
    assert known is not None
    root_fd = os.open(outputs, os.O_RDONLY)
    try:
        changes = [record_of(known, root, found) for found in scan_tree(root, root_fd).found]
    finally:
        os.close(root_fd)
    assert len(changes) == COUNT + 1
    batch = catalog.prepare(changes)
    assert batch is not None
    state.commit(batch, {}, catalog.floor)
    state.close()
    with contextlib.closing(sqlite3.connect(daemon.state / "state.sqlite3")) as database, database:
        database.execute(
            "INSERT OR IGNORE INTO descriptions SELECT entries.id, known.summary, known.tensors"
            " FROM entries, descriptions AS known WHERE known.id = ?",
            (first,),
        )


def record_of(known: Description, root: Root, found: Found) -> Change:
    """What is published of a checkpoint that was read."""
    inspection = msgspec.structs.replace(known.inspection, identity=found.identities.file)
    record = make_record(
        root,
        found.path,
        msgspec.structs.replace(known, inspection=inspection),
        Health.VALID,
        identities=found.identities,
        metadata_source=MetadataSource.NONE,
    )
    return Change(record.entry.id, lambda _: record)


def figure(daemon: Daemon, name: str) -> float:
    """A metric without labels."""
    match = re.search(rf"^{name} (\S+)$", daemon.get("/metrics").text, re.M)
    assert match is not None, name
    return float(match[1])


def listed(daemon: Daemon) -> set[str]:
    """All paths; the pages are not held to the contract one by one, of which one would do."""
    names: set[str] = set()
    page = 1
    with httpx.Client(base_url=daemon.url, verify=False, timeout=60) as client:
        while True:
            answer = client.get(f"/checkpoints?page={page}&page_size=1000&include_invalid=true").json()
            names |= {entry["path"] for entry in answer["checkpoints"]}
            if page >= answer["total_pages"]:
                return names
            page += 1


def is_listed(daemon: Daemon, outputs: pathlib.Path, name: str) -> bool:
    return daemon.get(f"/checkpoints/{checkpoint_id(str(outputs), name.encode())}").status_code == 200


def test_in_a_directory_of_100000_a_change_is_found_at_the_price_of_that_change(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rename_in(outputs / "first.ckpt", checkpoint_bytes(2))
    daemon = Daemon(outputs, tmp_path / "state", **SETTINGS)
    with daemon:
        eventually(lambda: "first.ckpt" in daemon.entries(), "the first one is described")
        assert daemon.stop() == 0
        fill(outputs)
        remember(daemon, outputs)
        daemon.start()
        health = daemon.wait_complete(deadline_s=GENEROUS_S)
        assert health["by_health"] == {"valid": COUNT + 1}
        eventually(lambda: daemon.health()["roots"][0]["watching"], "it is watched", deadline_s=GENEROUS_S)
        looks, described = figure(daemon, "ckptd_looks_total"), figure(daemon, "ckptd_described_total")
        assert described < FEW, "what is known is not read again"

        for number in range(40):
            rename_in(outputs / f"new{number}.ckpt", checkpoint_bytes(number % 5))
            (outputs / f"e{1000 * number:06}.ckpt").unlink()
            rename_in(outputs / f"e{1000 * number + 500:06}.ckpt", checkpoint_bytes(7))
            with open(outputs / "train.log", "a") as log:
                log.write("what is no checkpoint's affair\n" * 10)
        rename_in(outputs / "last.ckpt", checkpoint_bytes(3))
        eventually(lambda: is_listed(daemon, outputs, "last.ckpt"), "news arrives", deadline_s=GENEROUS_S)
        eventually(lambda: not is_listed(daemon, outputs, "e039000.ckpt"), "deletions, too", deadline_s=GENEROUS_S)
        assert figure(daemon, "ckptd_looks_total") - looks < FEW, "a change is no reason to look at everything"

        moment = time.time()
        daemon.rebuild()
        daemon.wait_complete(moment, deadline_s=GENEROUS_S)
        assert listed(daemon) == {name for name in os.listdir(outputs) if name.endswith(".ckpt")}
        assert daemon.health()["by_health"] == {"valid": COUNT + 2}
        assert figure(daemon, "ckptd_described_total") - described < FEW
        assert daemon.health()["roots"][0]["watching"]
        assert_log_is_bounded(daemon)
        assert daemon.stop() == 0
