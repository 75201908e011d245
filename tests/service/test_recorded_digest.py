"""A file without checksums that was saved with its digest: the daemon finds a flip at its first verification."""

import pathlib

import pytest
import torch

from ckptd.catalog.callbacks.saving import save_with_metadata
from tests.catalog.verified_files import flip
from tests.service.daemons import Daemon, eventually

pytestmark = pytest.mark.timeout(300)
DEADLINE_S = 120.0


def save(path: pathlib.Path, seed: int, hmean: float = 0.5) -> None:
    """As a training does that leaves checksums out."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_with_metadata({"state_dict": {"weight": weight}}, path, metrics={"val/hmean": hmean})
    finally:
        torch.serialization.set_crc32_options(before)


@pytest.mark.slow
def test_a_flipped_bit_in_a_file_without_checksums_is_found_at_the_first_verification(tmp_path: pathlib.Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name, seed in (("good.ckpt", 1), ("bad.ckpt", 2)):
        save(outputs / name, seed)
    flip(outputs / "bad.ckpt", (outputs / "bad.ckpt").stat().st_size // 2)
    with Daemon(outputs, tmp_path / "state", verify_mb_per_s=0, scrub_days=0) as daemon:

        def verified() -> bool:
            entries = daemon.entries()
            return len(entries) == 2 and sum(daemon.health()["verification"]["outcomes"].values()) == 2

        eventually(verified, "both are verified", deadline_s=DEADLINE_S)
        good = eventually(
            lambda: (e := daemon.entries()["good.ckpt"])["verified"] == "checksum" and e, "the good one is proved"
        )
        assert good["health"] == "valid"
        assert good["metadata_source"] == "sidecar"
        assert good["metrics"] == {"hmean": 0.5}
        bad = eventually(lambda: (e := daemon.entries()["bad.ckpt"])["health"] == "invalid" and e, "the bad is found")
        assert "archive.checksum_mismatch" in {ref["code"] for ref in bad["findings"]}
        assert daemon.health()["verification"]["outcomes"] == {"good": 1, "corrupt": 1}
    assert daemon.log().count("a checkpoint is corrupt") == 1


@pytest.mark.slow
def test_a_training_that_overwrites_its_last_checkpoint_all_the_time_never_accuses_it(tmp_path: pathlib.Path) -> None:
    """For a moment the new file lies beside the metadata of the old one, which has the same size and no checksums."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with (
        Daemon(outputs, tmp_path / "state", verify_mb_per_s=0, scrub_days=1e-6) as daemon,
        daemon.events(include_invalid="true") as events,
    ):
        for seed in range(60):
            save(outputs / "last.ckpt", seed, hmean=seed / 100)
        said: list[str] = []
        while True:
            entries = next(message for message in events if message["type"] == "upsert")["checkpoints"]
            said += [f"{entry['health']} {[ref['code'] for ref in entry['findings']]}" for entry in entries]
            if entries[-1]["metrics"] == {"hmean": 0.59} and entries[-1]["verified"] == "checksum":
                break
        assert [one for one in said if "invalid" in one or "digest" in one or "mismatch" in one] == []
        assert sorted(path.name for path in outputs.glob("*last*")) == ["last.ckpt", "last.ckpt.metadata.yaml"]
