"""A file without checksums that was saved with its digest: the daemon finds a flip at its first verification."""

import pathlib

import torch

from ckptd.catalog.callbacks.saving import save_with_metadata
from tests.catalog.verified_files import flip
from tests.service.daemons import Daemon, eventually


def save(path: pathlib.Path, seed: int) -> None:
    """As a training does that leaves checksums out."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_with_metadata({"state_dict": {"weight": weight}}, path, metrics={"val/hmean": 0.5})
    finally:
        torch.serialization.set_crc32_options(before)


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

        eventually(verified, f"both are verified; {daemon.log()[-2000:]}")
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
