"""Names of every kind that a filesystem allows, side by side: each is one entry, with its own bytes and sidecar."""

import base64
import os
import pathlib

import pytest

from tests.faults.faulty_services import assert_log_is_bounded
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STEMS = (
    b"plain",
    b"-leading dash",
    b"--",
    b" leading space",
    b"trailing space ",
    b"trailing dots...",
    b"new\nline",
    b"carriage\rreturn",
    b"tab\tand\x01\x7fcontrol",
    b"esc\x1b[31mred",
    b"Case",
    b"case",
    b"CASE",
    "é composed".encode(),
    "é decomposed".encode(),
    "\u202ereversed\u2066isolate".encode(),
    "zero\u200bwidth\ufeff".encode(),
    "\U0001f525".encode(),
    b"latin \xe9",
    b"\xff\xfe\x80",
    b"half \xf0\x9f\x94",
    b"surrogate \xed\xa0\x80",
    b"%00%2f..%5c",
    b"a\\b",
    b"$(touch x)`id`;&|",
    b"\"double' quote",
    b"*?[a]{b}",
    b"<img src=x onerror=alert(1)>",
    b"CON",
    b"checkpoint_path: x",
    b"a.metadata.yaml",
    b"best.ckpt",
    b"x.ckpt.metadata.yaml",
    b"~",
    b"#comment",
    b"255" + b"x" * 247,
    "多字节".encode() * 27,
)


def test_names_of_every_kind_are_one_entry_each_with_their_own_bytes_and_their_own_sidecar(
    tmp_path: pathlib.Path,
) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    names = [stem + b".ckpt" for stem in STEMS]
    assert any(len(name) == 255 for name in names)
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(outputs), name), "wb") as file:
            file.write(checkpoint_bytes(number, epoch=number))
    settings = {"sidecar_delay_s": 0.1, "sweep_min_s": 0.2, "sweep_cpu": 0.5, "build_degraded_s": 120}
    with Daemon(outputs, tmp_path / "state", **settings) as daemon:
        eventually(
            lambda: len(e := daemon.entries()) == len(names) and all(v["has_metadata"] for v in e.values()),
            f"all have metadata: {daemon.health()}",
        )
        by_name = {_name(entry): entry for entry in daemon.entries().values()}
        assert by_name.keys() == set(names)
        assert {name: by_name[name]["epoch"] for name in names} == {name: n for n, name in enumerate(names)}
        assert len({entry["id"] for entry in by_name.values()}) == len(names)
        assert all(entry["health"] == "valid" for entry in by_name.values())
        there = set(os.listdir(os.fsencode(outputs)))
        for name in names:
            kept = by_name[name]["metadata_source"]
            assert kept == ("state" if len(name) > 255 - len(b".metadata.yaml") else "daemon"), name
            assert (name + b".metadata.yaml" in there) == (kept == "daemon"), name
        for name in names[::2]:
            os.unlink(os.path.join(os.fsencode(outputs), name))
        eventually(
            lambda: {_name(entry) for entry in daemon.entries().values()} == set(names[1::2]), "every other one is gone"
        )
        assert daemon.stop() == 0
        log = daemon.log_file.read_bytes()
        assert not set(log) & (set(range(32)) - {10}), "a name reached the log as it is"
        daemon.start()
        daemon.wait_complete()
        assert {_name(entry) for entry in daemon.entries().values()} == set(names[1::2])
        assert_log_is_bounded(daemon)


def test_with_names_that_are_not_utf8_in_use_everything_else_in_the_root_is_told_by_events(
    tmp_path: pathlib.Path,
) -> None:
    """Each use of such a name ended the watch of the whole root: the rest of it was told of by sweeps."""
    outputs = tmp_path / "outputs"
    odd = os.path.join(os.fsencode(outputs), b"\xff\xfe")
    os.makedirs(odd)
    never_s = 3600  # a sweep would hide that an event was lost
    with Daemon(outputs, tmp_path / "state", sidecars="off", verify="none", sweep_min_s=never_s) as daemon:
        eventually(lambda: "by the bytes of the names" in daemon.log(), "another kind of watch begins")
        eventually(lambda: daemon.health()["roots"][0]["watching"], "it stands")
        there = set[bytes]()
        for number in range(40):
            name = b"\xe9%d.ckpt" % (number % 9)
            with open(os.path.join(odd, name), "wb") as file:
                file.write(checkpoint_bytes(number % 5))
            there.add(b"\xff\xfe/" + name)
            if number % 4 == 3:
                os.rename(os.path.join(odd, name), os.path.join(odd, b"x" + name))
                there.remove(b"\xff\xfe/" + name)
                there.add(b"\xff\xfe/x" + name)
            rename_in(outputs / f"run{number}/a.ckpt", checkpoint_bytes(number % 5))
            there.add(b"run%d/a.ckpt" % number)
        os.rename(odd, odd + b"\xfd")
        there = {path.replace(b"\xff\xfe/", b"\xff\xfe\xfd/") for path in there}
        eventually(
            lambda: {_name(entry) for entry in daemon.entries().values()} == there, "the catalog equals the tree"
        )
        health = daemon.health()
        assert health["roots"][0]["watching"], health
        assert daemon.log().count("the watch ended") == 1, "and is told of once"
        assert_log_is_bounded(daemon)


def _name(entry: dict[str, str]) -> bytes:
    """The bytes of its name: text says them, except where they are no UTF-8."""
    if "path_base64" in entry:
        return base64.b64decode(entry["path_base64"])
    return entry["path"].encode()
