"""A running daemon reads every byte in the background: what it tells, in which order, and that it tells of bit rot."""

import json
import os
import pathlib
import time
from typing import Any

import pytest
import torch
import yaml

from ckptd.validators import Level, inspect_checkpoint
from tests.catalog.verified_files import flip
from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import Daemon, eventually
from tests.service.rotting_disks import LoopDisk

ALWAYS = 1e-6
"""Days after which a verification is repeated: a tenth of a second."""
ELEMENTS = 64


@pytest.fixture
def outputs(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


def a_daemon(outputs: pathlib.Path, tmp_path: pathlib.Path, **settings: object) -> Daemon:
    given: dict[str, object] = {"verify_mb_per_s": 0, "scrub_days": 0, "sidecar_delay_s": 0.1}
    return Daemon(outputs, tmp_path / "state", **(given | settings))


def good(seed: int = 0) -> bytes:
    return checkpoint_bytes(seed, elements=ELEMENTS)


def weights(data: bytes) -> bytes:
    """A stretch of the largest tensor's bytes."""
    return data[len(data) // 2 : len(data) // 2 + 256]


def codes(entry: dict[str, Any]) -> set[str]:
    """What was found of the file itself."""
    found = {ref["code"] for ref in entry["findings"]}
    return {code for code in found if not code.startswith(("metadata.", "config."))}


def verified(daemon: Daemon, *paths: str) -> dict[str, dict[str, Any]]:
    """The entries, once all of these are verified to the last byte."""

    def probe() -> dict[str, dict[str, Any]] | None:
        entries = daemon.entries()
        done = all(path in entries and entries[path]["verified"] == "checksum" for path in paths)
        return entries if done else None

    return eventually(probe, f"{paths} are verified; {daemon.log()[-2000:]}")


def found(daemon: Daemon, path: str, *expected: str) -> dict[str, Any]:
    """The entry, once exactly this was found of it."""

    def probe() -> dict[str, Any] | None:
        entry = daemon.entries().get(path)
        return entry if entry is not None and codes(entry) == set(expected) else None

    return eventually(probe, f"{expected} is found of {path}; {daemon.log()[-2000:]}")


def messages(daemon: Daemon, entry: dict[str, Any]) -> dict[str, str]:
    """Finding code → message, from the detail."""
    detail = daemon.get(f"/checkpoints/{entry['id']}").json()
    return {one["code"]: one["message"] for one in detail["findings"]}


def wait_until_old(outputs: pathlib.Path) -> None:
    """Until nothing there is so young that the daemon would wait for it."""
    eventually(
        lambda: time.time() - max(p.stat().st_ctime for p in outputs.rglob("*.ckpt")) > 2.1, "files are no longer young"
    )


def test_a_listener_hears_of_a_new_checkpoint_and_then_that_its_bytes_are_as_written_or_not(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with a_daemon(outputs, tmp_path) as daemon, daemon.events(include_invalid="true") as events:
        assert next(message for message in events if message["type"] == "complete")
        rename_in(outputs / "good.ckpt", good(1))
        rename_in(outputs / "bad.ckpt", good(2))
        flip(outputs / "bad.ckpt", len(good(2)) // 2)
        told: dict[str, list[tuple[str, str]]] = {"good.ckpt": [], "bad.ckpt": []}
        while not all(states and states[-1][1] == "checksum" for states in told.values()):
            for entry in next(message for message in events if message["type"] == "upsert")["checkpoints"]:
                told[entry["path"]].append((entry["health"], entry["verified"]))
        assert ("valid", "structure") in told["bad.ckpt"]
        assert told["bad.ckpt"][-1] == ("invalid", "checksum")
        assert told["good.ckpt"][-1] == ("valid", "checksum")
        entry = found(daemon, "bad.ckpt", "archive.checksum_mismatch")
        assert "model.encoder.weight" in messages(daemon, entry)["archive.checksum_mismatch"]
        health = daemon.health()["verification"]
        assert health["by_level"] == {"checksum": 2}
        assert health["outcomes"] == {"good": 1, "corrupt": 1}
        assert health["oldest_verified_at"] is not None
        assert health["by_finding"]["archive.checksum_mismatch"] == 1
        assert health["bytes_read"] == len(good(1)) + len(good(2))
        metrics = daemon.get("/metrics").text
        assert 'ckptd_verified_total{level="checksum",outcome="corrupt"} 1.0' in metrics
        assert 'ckptd_findings{code="archive.checksum_mismatch"} 1.0' in metrics
        assert "ckptd_verify_queue 0.0" in metrics
    assert daemon.log().count("a checkpoint is corrupt") == 1
    assert "good.ckpt" not in daemon.log()


def test_bit_rot_under_an_unchanged_modification_time_is_reported_by_the_scrub(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Somebody wrote to the file and set its time back; the change time tells no more than that there was a change."""
    with a_daemon(outputs, tmp_path, scrub_days=ALWAYS) as daemon:
        path = outputs / "a.ckpt"
        rename_in(path, good())
        verified(daemon, "a.ckpt")
        flip(path, len(good()) // 2)
        entry = found(daemon, "a.ckpt", "archive.bit_rot", "archive.checksum_mismatch")
        assert entry["health"] == "invalid"
        message = messages(daemon, entry)["archive.bit_rot"]
        assert "model.encoder.weight" in message
        assert "verified as good at 20" in message
        assert daemon.stop() == 0
        daemon.start()
        assert codes(daemon.entries()["a.ckpt"]) == {"archive.bit_rot", "archive.checksum_mismatch"}


@pytest.mark.root
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_bit_rot_of_the_disk_beneath_an_unchanged_identity_is_reported_by_the_scrub(
    tmp_path: pathlib.Path, name: str
) -> None:
    """Of a file that carries checksums, and of one that carries none; both are in the page cache as they were."""
    disk = LoopDisk(tmp_path)
    with disk.mounted() as outputs:
        data = good() if name == "a.ckpt" else _safetensors()
        rename_in(outputs / name, data)
        suffix = os.path.splitext(name)[1]
        with a_daemon(outputs, tmp_path, scrub_days=ALWAYS, sidecars="off", suffixes=suffix) as daemon:
            eventually(lambda: daemon.health()["verification"]["outcomes"].get("good", 0) > 2, "it is scrubbed")
            before = os.stat(outputs / name)
            disk.rot(weights(data))
            expected = {"archive.checksum_mismatch"} if name == "a.ckpt" else {"archive.unverifiable"}
            entry = found(daemon, name, "archive.bit_rot", *expected)
            assert entry["health"] == "invalid"
            assert "nothing wrote to the file" in messages(daemon, entry)["archive.bit_rot"]
            assert (outputs / name).read_bytes() == data  # as whoever reads it from memory sees it
            after = os.stat(outputs / name)
            assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
                after.st_ino,
                after.st_mtime_ns,
                after.st_ctime_ns,
            )


def _safetensors() -> bytes:
    import safetensors.torch

    generator = torch.Generator().manual_seed(5)
    return bytes(safetensors.torch.save({"model.weight": torch.randn(ELEMENTS, ELEMENTS, generator=generator)}))


@pytest.mark.slow
def test_neither_a_new_sidecar_nor_a_full_rebuild_makes_a_corrupt_file_valid_or_takes_a_level(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name, data in (("good.ckpt", good(1)), ("bad.ckpt", good(2))):
        rename_in(outputs / name, data)
    flip(outputs / "bad.ckpt", len(good(2)) // 2)
    with a_daemon(outputs, tmp_path) as daemon:
        verified(daemon, "good.ckpt", "bad.ckpt")
        for name in ("good.ckpt", "bad.ckpt"):
            (outputs / f"{name}.metadata.yaml").write_text("exp_name: mine\n")
        eventually(lambda: {e["exp_name"] for e in daemon.entries().values()} == {"mine"}, "the sidecars are read")
        token = daemon.rebuild("full")
        with daemon.events() as events:
            eventually(lambda: "(0 known, 2 inspected)" in daemon.log(), f"rebuild {token}")
            assert next(events)
        entries = daemon.entries()
        assert {e["verified"] for e in entries.values()} == {"checksum"}
        assert (entries["good.ckpt"]["health"], entries["bad.ckpt"]["health"]) == ("valid", "invalid")
        assert daemon.health()["verification"]["outcomes"] == {"good": 1, "corrupt": 1}


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on_where_it_was(outputs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    count = 100
    for number in range(count):
        rename_in(outputs / f"{number}.ckpt", checkpoint_bytes(number))
    wait_until_old(outputs)
    with a_daemon(outputs, tmp_path, sidecars="off") as daemon:

        def done() -> int:
            return int(daemon.health()["verification"]["by_level"].get("checksum", 0))

        eventually(lambda: done() > 20, "some are verified")
        daemon.kill()
        daemon.start()
        already = done()
        assert already > 20
        eventually(lambda: done() == count, "all are verified")
        health = daemon.health()["verification"]
        assert sum(health["outcomes"].values()) <= count - already
        assert health["queued"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_small_files_are_verified_in_the_order_of_their_age_newest_first(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    count = 1000
    ages = torch.randperm(count, generator=torch.Generator().manual_seed(3)).tolist()
    for number, age in enumerate(ages):
        path = outputs / f"{number}.ckpt"
        rename_in(path, checkpoint_bytes(number % 50))
        os.utime(path, (1.7e9 - age, 1.7e9 - age))
    with a_daemon(outputs, tmp_path, sidecars="off", verify="structure") as daemon:
        eventually(lambda: daemon.health()["verification"]["by_level"] == {"structure": count}, "all are described")
        daemon.wait_complete()
        assert daemon.stop() == 0
    wait_until_old(outputs)
    with a_daemon(outputs, tmp_path, sidecars="off") as daemon:
        eventually(lambda: daemon.health()["verification"]["by_level"] == {"checksum": count}, "all", deadline_s=200)
        told = sorted(daemon.entries().values(), key=lambda entry: int(entry["revision"]))
        assert [ages[int(entry["path"].removesuffix(".ckpt"))] for entry in told] == list(range(count))


@pytest.mark.slow
def test_a_big_file_that_is_being_verified_holds_up_neither_news_nor_the_stop(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """At a tenth of a megabyte per second it would take minutes."""
    with open(outputs / "big.ckpt", "wb") as file:
        torch.save({"state_dict": {"weight": torch.randn(5_000_000)}}, file)
    with a_daemon(outputs, tmp_path, verify_mb_per_s=0.1) as daemon:

        def is_under_way() -> bool:
            return daemon.health()["verification"]["verifying"] == str(outputs / "big.ckpt")

        eventually(is_under_way, "it is being verified")
        for number in range(20):
            rename_in(outputs / f"{number}.ckpt", good(number))
        eventually(lambda: sum(e["health"] == "valid" for e in daemon.entries().values()) == 21, "all are listed")
        assert is_under_way()
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.entries()["big.ckpt"]["verified"] == "structure"
        eventually(is_under_way, "it is begun again")


@pytest.mark.slow
def test_at_level_weights_a_value_that_is_no_number_makes_a_checkpoint_invalid(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    good_weights, bad_weights = torch.randn(8, 8), torch.randn(8, 8)
    bad_weights[3, 5] = torch.nan
    for name, values in (("good.ckpt", good_weights), ("bad.ckpt", bad_weights)):
        torch.save({"state_dict": {"model.weight": values}}, outputs / name)
    with a_daemon(outputs, tmp_path, verify="weights") as daemon:
        entry = found(daemon, "bad.ckpt", "weights.non_finite")
        assert entry["health"] == "invalid"
        assert "model.weight" in messages(daemon, entry)["weights.non_finite"]
        eventually(lambda: daemon.entries()["good.ckpt"]["verified"] == "weights", "the other one is good")
        assert json.loads(daemon.get("/health/checkpoints").text)["verification"]["level"] == "weights"


@pytest.mark.slow
def test_a_sidecar_that_is_written_after_the_verification_carries_the_digest_of_the_file(
    outputs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with a_daemon(outputs, tmp_path, sidecar_delay_s=15) as daemon:
        rename_in(outputs / "a.ckpt", good())
        entry = verified(daemon, "a.ckpt")["a.ckpt"]
        sidecar = outputs / "a.ckpt.metadata.yaml"
        assert not sidecar.exists()
        eventually(sidecar.exists, "the sidecar is written")
        digest = yaml.safe_load(sidecar.read_text())["source"]["digest"]
        assert digest == inspect_checkpoint(outputs / "a.ckpt", Level.CHECKSUM).digest
        eventually(lambda: daemon.entries()["a.ckpt"]["has_metadata"], "it is listed with its metadata")
        assert daemon.entries()["a.ckpt"]["verified"] == entry["verified"]
