"""Bad files against the running daemon: each is listed as what it is, or not at all; its neighbours never notice."""

import contextlib
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.service.checkpoints import checkpoint_bytes, rename_in, write_in_place
from tests.service.daemons import Daemon, eventually

LONG_AGO = (1_700_000_000, 1_700_000_000)
GOOD = "good/checkpoints/epoch=3.ckpt"


class Served:
    """A daemon on a tree with one good checkpoint, shared by the tests of this module; each has its own directory."""

    def __init__(self, daemon: Daemon, outputs: pathlib.Path) -> None:
        self.daemon = daemon
        self.outputs = outputs

    def entry(self, path: str, **expected: object) -> dict[str, Any]:
        """Wait until the entry of `path` is as expected."""
        return eventually(lambda: self._if_as(path, expected), f"{path} becomes {expected}: {self.log_tail()}")

    def gone(self, path: str) -> None:
        """Wait until `path` is not listed."""
        eventually(lambda: path not in self.daemon.entries(), f"{path} is not listed any more")

    def beneath(self, directory: str) -> dict[str, dict[str, Any]]:
        """What is listed beneath a directory, by the rest of the path."""
        prefix = directory + "/"
        return {p.removeprefix(prefix): e for p, e in self.daemon.entries().items() if p.startswith(prefix)}

    def settled(self) -> dict[str, Any]:
        """Wait until a sweep that began after now is complete and nothing is pending; returns the health then."""
        moment = time.time()
        self.daemon.rebuild()
        self.daemon.wait_complete(moment)
        return eventually(lambda: h if not (h := self.daemon.health())["pending"] else None, "nothing is pending")

    def log_tail(self) -> str:
        return self.daemon.log()[-1500:]

    def _if_as(self, path: str, expected: dict[str, object]) -> dict[str, Any] | None:
        entry = self.daemon.entries().get(path)
        return entry if entry is not None and expected.items() <= entry.items() else None


@pytest.fixture(scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.mktemp("bad")
    outputs = base / "outputs"
    write_in_place(outputs / GOOD, checkpoint_bytes(7))
    daemon = Daemon(outputs, base / "state", sidecar_delay_s=0.1, quiet_s=0.3, abandoned_s=4)
    with daemon:
        served = Served(daemon, outputs)
        served.entry(GOOD, health="valid", metadata_source="daemon")
        yield served
        assert daemon.stop() == 0


@pytest.fixture
def served(_served: Served) -> Iterator[Served]:
    """Fails the test that changed a neighbour, or that made the service log an exception."""
    before, logged = _served.entry(GOOD, health="valid", verified="checksum"), len(_served.daemon.log())
    yield _served
    assert _served.daemon.entries()[GOOD] == before
    assert "Traceback" not in _served.daemon.log()[logged:]
    assert "internal error" not in [e["what"] for e in _served.daemon.health()["recent_errors"]]


def codes(entry: dict[str, Any], severity: str | None = None) -> set[str]:
    return {found["code"] for found in entry["findings"] if severity in (None, found["severity"])}


def detail(served: Served, entry: dict[str, Any]) -> dict[str, Any]:
    return dict(served.daemon.get(f"/checkpoints/{entry['id']}").json())


# ---- damaged and unfinished files --------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_is_listed_as_invalid_and_becomes_valid_once_it_is_whole(served: Served) -> None:
    data = checkpoint_bytes(1)
    cuts = sorted({len(data) - gone for gone in (1, 2, 21, 22, 23, 64)} | {0, 1, 2, 3, 4, 29, 30, 63, 64, 65})
    cuts += [len(data) * i // 25 for i in range(1, 25)]
    for cut in cuts:
        write_in_place(served.outputs / f"cut/{cut}.ckpt", data[:cut])
        os.utime(served.outputs / f"cut/{cut}.ckpt", LONG_AGO)
    eventually(
        lambda: [e["health"] for e in served.beneath("cut").values()] == ["invalid"] * len(set(cuts)),
        "every cut is invalid",
    )
    for path, entry in served.beneath("cut").items():
        errors = codes(entry, "error")
        assert errors & {"archive.incomplete", "archive.truncated", "format.not_a_checkpoint"}, (path, errors)
        assert entry["size_bytes"] == int(path.removesuffix(".ckpt"))
    shown = served.daemon.get("/checkpoints", page_size=1000).json()["checkpoints"]
    assert not [entry for entry in shown if entry["path"].startswith("cut/")]
    assert served.daemon.health()["by_health"]["invalid"] >= len(set(cuts))
    for cut in cuts:
        write_in_place(served.outputs / f"cut/{cut}.ckpt", data)
    eventually(lambda: {e["health"] for e in served.beneath("cut").values()} == {"valid"}, "all are whole")


def test_a_file_that_grows_slowly_is_writing_until_its_last_byte(served: Served) -> None:
    data = checkpoint_bytes(2, elements=300)
    told: list[str] = []
    with served.daemon.events(q="grow/") as events, open(_made(served.outputs / "grow/slow.ckpt"), "wb") as file:
        assert next(m for m in events if m["type"] != "batch")["type"] in ("reset", "complete")
        step = len(data) // 5 + 1
        for start in range(0, len(data), step):
            last = start + step >= len(data)
            file.write(data[start : start + step])
            file.flush()
            if last:
                file.close()
            served.entry(
                "grow/slow.ckpt", health="valid" if last else "writing", size_bytes=min(start + step, len(data))
            )
        for message in events:
            told += [entry["health"] for entry in message.get("checkpoints", []) if "health" in entry]
            if "valid" in told:
                break
    assert set(told[: told.index("valid")]) <= {"writing"}


def test_a_file_that_is_overwritten_again_and_again_is_never_described_as_a_mixture(served: Served) -> None:
    path = served.outputs / "over/best.ckpt"
    contents = {1: checkpoint_bytes(1, epoch=1, elements=16), 2: checkpoint_bytes(2, epoch=2, elements=400)}
    sound = {(1, 16 * 16 + 16), (2, 400 * 400 + 400)}
    seen: set[tuple[int, int]] = set()
    with served.daemon.events(q="over/") as events:
        for round_ in range(60):
            write_in_place(path, contents[1 + round_ % 2])
        write_in_place(path, contents[2])
        served.entry("over/best.ckpt", health="valid", epoch=2, metadata_source="daemon")
        write_in_place(path.with_name("end.ckpt"), contents[1])
        for message in events:
            entries = [entry for entry in message.get("checkpoints", []) if entry.get("health") == "valid"]
            seen |= {(entry["epoch"], entry["n_parameters"]) for entry in entries}
            if any(entry["path"] == "over/end.ckpt" for entry in entries):
                break
    assert seen <= sound
    assert (2, 400 * 400 + 400) in seen


def test_an_overwritten_file_of_the_same_inode_size_and_time_is_read_again(served: Served) -> None:
    """As a save through another filesystem leaves it: copied into the old file, its time set back."""
    path = served.outputs / "copied/last.ckpt"
    write_in_place(path, checkpoint_bytes(3))
    os.utime(path, LONG_AGO)
    before = served.entry("copied/last.ckpt", health="valid")
    status = path.stat()
    source = served.outputs.parent / "elsewhere.bin"
    source.write_bytes(checkpoint_bytes(4))
    with open(source, "rb") as new, open(path, "r+b") as old:
        shutil.copyfileobj(new, old)
    os.utime(path, LONG_AGO)
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
    eventually(
        lambda: served.daemon.entries()["copied/last.ckpt"]["content_id"] != before["content_id"],
        "the new contents are described",
    )
    served.entry("copied/last.ckpt", health="valid", metadata_source="daemon")


def test_files_that_are_deleted_while_they_are_being_read_leave_nothing_behind(served: Served) -> None:
    data = checkpoint_bytes(5, elements=200)
    for number in range(60):
        rename_in(served.outputs / f"brief/{number % 7}.ckpt", data)
        if number % 3:
            (served.outputs / f"brief/{number % 7}.ckpt").unlink()
    shutil.rmtree(served.outputs / "brief")
    eventually(lambda: not served.beneath("brief"), "none is listed")
    served.settled()
    assert not served.beneath("brief")


def test_files_that_are_something_else_say_what(served: Served) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
    files = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer": pointer,
        "zeros": bytes(100_000),
        "text": b"see the other directory\n",
    }
    for name, data in files.items():
        write_in_place(served.outputs / f"else/{name}.ckpt", data)
        os.utime(served.outputs / f"else/{name}.ckpt", LONG_AGO)
    for name in files:
        entry = served.entry(f"else/{name}.ckpt", health="invalid")
        assert codes(entry, "error") & {"format.not_a_checkpoint", "format.unknown"}, (name, entry["findings"])
        found = next(f for f in detail(served, entry)["findings"] if f["severity"] == "error")
        assert found["message"]
        assert found["remedy"]


# ---- names -------------------------------------------------------------------------------------------------------


def test_names_that_break_careless_programs_are_ordinary_names(served: Served) -> None:
    names = ["-rf", "--help", "new\nline", "quo\"te's", "esc\x1b[2J", "a b", "<script>", "\u202ertl", "%s%n", "$(id)"]
    for seed, name in enumerate(names):
        write_in_place(served.outputs / f"names/{name}.ckpt", checkpoint_bytes(seed))
    for name in names:
        entry = served.entry(f"names/{name}.ckpt", health="valid", metadata_source="daemon")
        assert "path_base64" not in entry
        assert (served.outputs / f"names/{name}.ckpt.metadata.yaml").is_file()
        assert detail(served, entry)["path"] == f"names/{name}.ckpt"


def test_a_name_too_long_for_a_sidecar_keeps_its_metadata_in_the_state(served: Served) -> None:
    name = "long/" + "x" * 250 + ".ckpt"
    write_in_place(served.outputs / name, checkpoint_bytes(9))
    entry = served.entry(name, health="valid", has_metadata=True, metadata_source="state")
    found = next(f for f in detail(served, entry)["findings"] if f["code"] == "metadata.unwritable")
    assert "name" in found["message"]
    assert os.listdir(served.outputs / "long") == [os.path.basename(name)]


def test_a_hidden_checkpoint_is_a_temporary_file_and_not_listed(served: Served) -> None:
    write_in_place(served.outputs / "hidden/.best.ckpt", checkpoint_bytes())
    write_in_place(served.outputs / "hidden/best.ckpt", checkpoint_bytes())
    served.entry("hidden/best.ckpt", health="valid")
    assert set(served.beneath("hidden")) == {"best.ckpt"}


# ---- links and odd things ----------------------------------------------------------------------------------------


def test_a_link_is_an_alias_that_follows_its_target_s_change_deletion_and_return(served: Served) -> None:
    target, link = served.outputs / "alias/epoch=1.ckpt", served.outputs / "alias/last.ckpt"
    write_in_place(target, checkpoint_bytes(1, epoch=1))
    first = served.entry("alias/epoch=1.ckpt", health="valid")
    link.symlink_to("epoch=1.ckpt")
    served.entry("alias/last.ckpt", health="valid", epoch=1, alias_of=first["id"])
    rename_in(target, checkpoint_bytes(2, epoch=2))
    served.entry("alias/last.ckpt", health="valid", epoch=2, alias_of=first["id"])
    target.unlink()
    entry = served.entry("alias/last.ckpt", health="invalid")
    assert "link.dangling" in codes(entry)
    rename_in(target, checkpoint_bytes(3, epoch=3))
    served.entry("alias/last.ckpt", health="valid", epoch=3, alias_of=first["id"])
    write_in_place(target.with_name("epoch=4.ckpt"), checkpoint_bytes(4, epoch=4))
    temporary = link.with_name(".last")
    temporary.symlink_to("epoch=4.ckpt")
    temporary.replace(link)
    other = served.entry("alias/epoch=4.ckpt", health="valid")
    served.entry("alias/last.ckpt", health="valid", epoch=4, alias_of=other["id"])
    assert not (served.outputs / "alias/last.ckpt.metadata.yaml").exists()
    link.unlink()
    served.gone("alias/last.ckpt")
    served.entry("alias/epoch=4.ckpt", health="valid", metadata_source="daemon")


def test_an_absolute_link_inside_the_root_is_an_alias_as_well(served: Served) -> None:
    target = served.outputs / "absolute/a.ckpt"
    write_in_place(target, checkpoint_bytes(1))
    (target.with_name("b.ckpt")).symlink_to(target)
    entry = served.entry("absolute/b.ckpt", health="valid")
    assert entry["alias_of"] == served.entry("absolute/a.ckpt")["id"]


def test_links_that_lead_nowhere_or_in_circles_are_listed_with_the_reason(served: Served) -> None:
    directory = served.outputs / "nowhere"
    directory.mkdir()
    (directory / "dangling.ckpt").symlink_to("gone.ckpt")
    (directory / "a.ckpt").symlink_to("b.ckpt")
    (directory / "b.ckpt").symlink_to("a.ckpt")
    (directory / "again").symlink_to(".")
    (directory / "up").symlink_to("..")
    for name, words in {"dangling": "does not exist", "a": "circle", "b": "circle"}.items():
        entry = served.entry(f"nowhere/{name}.ckpt", health="invalid")
        found = next(f for f in detail(served, entry)["findings"] if f["code"] == "link.dangling")
        assert words in found["message"], found
    served.settled()
    assert set(served.beneath("nowhere")) == {"dangling.ckpt", "a.ckpt", "b.ckpt"}


def test_a_link_out_of_the_roots_is_skipped_and_counted(served: Served) -> None:
    outside = served.outputs.parent / "outside"
    write_in_place(outside / "secret.ckpt", checkpoint_bytes(1))
    before = served.settled()["skipped_links"]
    (served.outputs / "out").mkdir()
    (served.outputs / "out/file.ckpt").symlink_to(outside / "secret.ckpt")
    (served.outputs / "out/directory").symlink_to(outside)
    assert served.settled()["skipped_links"] == before + 2
    assert not served.beneath("out")
    assert sorted(os.listdir(outside)) == ["secret.ckpt"]


def test_what_only_has_a_checkpoint_s_name_is_not_listed_and_blocks_nobody(served: Served) -> None:
    directory = served.outputs / "odd"
    directory.mkdir()
    os.mkfifo(directory / "fifo.ckpt")
    (directory / "directory.ckpt").mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        # the address of a socket holds 107 bytes: bound by a short name through the directory's descriptor
        fd = os.open(directory, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{fd}/socket.ckpt")
        os.close(fd)
    for name in ("fifo", "directory", "socket"):
        (directory / f"to-{name}.ckpt").symlink_to(f"{name}.ckpt")
    write_in_place(directory / "directory.ckpt/inside.ckpt", checkpoint_bytes(1))
    served.entry("odd/directory.ckpt/inside.ckpt", health="valid")
    served.settled()
    assert set(served.beneath("odd")) == {"directory.ckpt/inside.ckpt"}


def test_a_checkpoint_that_turns_into_something_else_leaves_the_list(served: Served) -> None:
    path = served.outputs / "turns/a.ckpt"
    write_in_place(path, checkpoint_bytes(1))
    served.entry("turns/a.ckpt", health="valid")
    path.unlink()
    os.mkfifo(path)
    served.gone("turns/a.ckpt")
    path.unlink()
    path.mkdir()
    write_in_place(path / "b.ckpt", checkpoint_bytes(1))
    served.entry("turns/a.ckpt/b.ckpt", health="valid")
    shutil.rmtree(path)
    write_in_place(path, checkpoint_bytes(1))
    served.entry("turns/a.ckpt", health="valid")
    served.gone("turns/a.ckpt/b.ckpt")


# ---- sidecars and configs ----------------------------------------------------------------------------------------

BAD_SIDECARS = {
    "not_yaml": b"training: [1, 2",
    "binary": bytes(range(256)) * 4,
    "tagged": b"!!python/object/apply:os.system ['touch /tmp/owned']\n",
    "aliases": b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "deep": b"[" * 100_000,
    "deep_flow": b"a: " + b"{a: " * 5_000 + b"1" + b"}" * 5_000,
    "huge": b"exp_name: " + b"x" * 3_000_000,
    "many": b"a: [" + b"1," * 200_000 + b"1]\n",
    "list": b"- 1\n- 2\n",
    "text": b"remember to clean up\n",
    "empty": b"",
    "nul": bytes(1000),
    "two_documents": b"exp_name: a\n---\nexp_name: b\n",
}


def test_a_sidecar_that_is_no_metadata_is_a_warning_and_is_left_as_it_is(served: Served) -> None:
    for name, data in BAD_SIDECARS.items():
        write_in_place(served.outputs / f"sidecars/{name}.ckpt.metadata.yaml", data)
        rename_in(served.outputs / f"sidecars/{name}.ckpt", checkpoint_bytes(1, epoch=6))
    for name in BAD_SIDECARS:
        entry = served.entry(f"sidecars/{name}.ckpt", health="valid", epoch=6)
        assert "metadata.invalid" in codes(entry, "warning"), (name, entry["findings"])
        found = next(f for f in detail(served, entry)["findings"] if f["code"] == "metadata.invalid")
        assert f"{name}.ckpt.metadata.yaml" in found["message"]
    served.settled()
    for name, data in BAD_SIDECARS.items():
        assert (served.outputs / f"sidecars/{name}.ckpt.metadata.yaml").read_bytes() == data


def test_a_sidecar_of_wild_values_gives_only_what_makes_sense(served: Served) -> None:
    write_in_place(
        served.outputs / "wild/a.ckpt.metadata.yaml",
        b"training: {epoch: 99999999999999999999999999, global_step: -3}\n"
        b"metrics: {hmean: .nan, precision: .inf, recall: 0.5}\nmodel: 3\nexp_name: {a: 1}\nuser: {note: mine}\n",
    )
    rename_in(served.outputs / "wild/a.ckpt", checkpoint_bytes(1, epoch=6))
    entry = served.entry("wild/a.ckpt", health="valid", metadata_source="sidecar")
    assert entry["metrics"] == {"recall": 0.5}
    assert isinstance(entry["exp_name"], str)


def test_something_else_in_the_sidecar_s_place_is_named_and_the_metadata_kept_in_the_state(served: Served) -> None:
    directory = served.outputs / "blocked"
    directory.mkdir()
    (directory / "directory.ckpt.metadata.yaml").mkdir()
    os.mkfifo(directory / "fifo.ckpt.metadata.yaml")
    (directory / "outward.ckpt.metadata.yaml").symlink_to("/etc/passwd")
    (directory / "circle.ckpt.metadata.yaml").symlink_to("circle.ckpt.metadata.yaml")
    for name in ("directory", "fifo", "outward", "circle"):
        rename_in(directory / f"{name}.ckpt", checkpoint_bytes(1))
    for name, word in {"directory": "directory", "fifo": "FIFO", "outward": "link", "circle": "link"}.items():
        entry = served.entry(f"blocked/{name}.ckpt", health="valid", metadata_source="state")
        found = next(f for f in detail(served, entry)["findings"] if f["code"] == "metadata.unwritable")
        assert word in found["message"], found
        assert f"{name}.ckpt.metadata.yaml" in found["message"]
    (directory / "directory.ckpt.metadata.yaml").rmdir()
    served.daemon.rebuild("full")
    served.entry("blocked/directory.ckpt", metadata_source="daemon")


def test_a_sidecar_of_another_file_is_stale_and_one_of_ours_is_replaced(served: Served) -> None:
    path = served.outputs / "stale/a.ckpt"
    write_in_place(path, checkpoint_bytes(1))
    served.entry("stale/a.ckpt", metadata_source="daemon")
    sidecar = served.outputs / "stale/a.ckpt.metadata.yaml"
    edited = sidecar.read_text() + "user: {note: mine}\n"
    theirs = served.outputs / "stale/b.ckpt.metadata.yaml"
    theirs.write_text(edited)
    rename_in(path, checkpoint_bytes(2, epoch=8, elements=30))
    rename_in(path.with_name("b.ckpt"), checkpoint_bytes(2, epoch=8, elements=30))
    entry = served.entry("stale/b.ckpt", health="valid", epoch=8)
    assert "metadata.stale" in codes(entry, "warning")
    served.entry("stale/a.ckpt", health="valid", epoch=8, metadata_source="daemon")
    eventually(lambda: yaml.safe_load(sidecar.read_text())["training"]["epoch"] == 8, "ours is written anew")
    assert theirs.read_text() == edited


def test_a_config_that_cannot_be_read_costs_only_its_own_values(served: Served) -> None:
    bad = {"torn": b"a: [", "tagged": b"!!python/name:os.system\n", "huge": b"a: " + b"x" * 3_000_000}
    for name, data in bad.items():
        write_in_place(served.outputs / f"configs/{name}/config.yaml", data)
    os.makedirs(served.outputs / "configs/directory/config.yaml")
    os.makedirs(served.outputs / "configs/fifo")
    os.mkfifo(served.outputs / "configs/fifo/config.yaml")
    for name, code in {
        "torn": "config.invalid",
        "tagged": "config.invalid",
        "huge": "config.invalid",
        "directory": "config.missing",
        "fifo": "config.missing",
    }.items():
        rename_in(served.outputs / f"configs/{name}/a.ckpt", checkpoint_bytes(1))
        entry = served.entry(f"configs/{name}/a.ckpt", health="valid", metadata_source="daemon")
        assert code in codes(entry, "warning"), (name, entry["findings"])


# ---- the index ---------------------------------------------------------------------------------------------------


def test_an_index_that_is_none_is_replaced_by_the_next_change(served: Served) -> None:
    index = served.outputs / ".checkpoint_index.json"
    eventually(index.exists, "the index is written")
    index.write_bytes(b"[" * 100_000)
    name = f"index/{time.monotonic_ns()}.ckpt"
    write_in_place(served.outputs / name, checkpoint_bytes(1))
    eventually(lambda: name.encode() in index.read_bytes(), "the index is whole again")


def _made(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
