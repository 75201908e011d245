"""One checkpoint with everything around it: what is said, what is found, and what is written beside it."""

import os
from pathlib import Path

import pytest

from ckptd.catalog.describe import describe_checkpoint, describe_opened, failed_description, sidecar_for
from ckptd.catalog.description import DescribeRequest, OpenedFiles, SidecarStatus
from ckptd.catalog.sidecar import render, sidecar_path, write_sidecar
from ckptd.validators.errors import Unreadable
from ckptd.validators.findings import Severity, finding
from ckptd.validators.inspection import FileIdentity, Level
from tests.catalog.metadata_files import codes, described, opened, ours, save, write

CONFIG = "exp_name: configured\nmodel:\n  architecture_name: dbnet\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write(tmp_path / "exp/.hydra/config.yaml", CONFIG)
    return save(tmp_path / "exp/checkpoints/epoch=7-val_loss=0.5.ckpt", epoch=0, global_step=3)


def beside(checkpoint: Path, data: bytes, suffix: str = ".ckpt.metadata.yaml") -> Path:
    return write(checkpoint.with_name(checkpoint.name.removesuffix(".ckpt") + suffix), data)


def fast(checkpoint: Path, sidecar: Path) -> Level:
    """The level of a description that may trust the sidecar."""
    files = [os.open(path, os.O_RDONLY) for path in (checkpoint, sidecar)]
    try:
        request = DescribeRequest(
            checkpoint_path=str(checkpoint),
            relative_path=os.fsencode(checkpoint.name),
            sidecar_names=(os.fsencode(sidecar.name),),
            trust_sidecar=True,
        )
        found = describe_opened(request, OpenedFiles(checkpoint=files[0], sidecars=(files[1],)))
        assert found.inspection.is_valid
        assert found.metadata.training.epoch == 0
        return found.inspection.level
    finally:
        for fd in files:
            os.close(fd)


def test_facts_of_file_config_name_and_place_come_together(checkpoint: Path, tmp_path: Path) -> None:
    found = described(checkpoint, tmp_path)
    assert (found.metadata.exp_name, found.metadata.model.architecture) == ("configured", "dbnet")
    assert (found.metadata.training.epoch, found.metadata.training.global_step) == (0, 3)
    assert found.metadata.metrics.validation_loss == 0.5
    assert found.config_path == "exp/.hydra/config.yaml"
    assert found.config["exp_name"] == "configured"
    assert codes(found) == ["metadata.missing"]


def test_ours_describes_the_file_it_was_written_for_until_the_file_changes(checkpoint: Path, tmp_path: Path) -> None:
    sidecar = beside(checkpoint, ours(checkpoint, tmp_path))
    assert described(checkpoint, tmp_path).sidecar is SidecarStatus.OURS
    os.utime(checkpoint, ns=(1, 1))
    assert described(checkpoint, tmp_path).sidecar is SidecarStatus.OURS
    save(checkpoint, epoch=1, global_step=3)
    changed = described(checkpoint, tmp_path)
    assert changed.sidecar is SidecarStatus.STALE_OURS
    assert changed.metadata.training.epoch == 1
    assert "metadata.stale" in codes(changed)
    sidecar.write_bytes(sidecar.read_bytes() + b"# mine now\n")
    assert described(checkpoint, tmp_path).sidecar is SidecarStatus.STALE


def test_a_persons_sidecar_wins_over_the_file_and_keeps_its_own_keys(checkpoint: Path, tmp_path: Path) -> None:
    beside(checkpoint, b"exp_name: mine\ntraining: {epoch: 41}\nuser: {note: keep}\n", ".metadata.yaml")
    found = described(checkpoint, tmp_path)
    assert found.sidecar is SidecarStatus.FOREIGN
    assert (found.metadata.exp_name, found.metadata.training.epoch) == ("mine", 41)
    assert (found.provenance["exp_name"], found.provenance["training.global_step"]) == ("sidecar", "checkpoint")
    assert found.user == {"user": {"note": "keep"}}


def test_a_trainings_sidecar_wins_over_ours_under_whichever_name(checkpoint: Path, tmp_path: Path) -> None:
    beside(checkpoint, ours(checkpoint, tmp_path))
    beside(checkpoint, b"exp_name: mine\n", ".metadata.yaml")
    found = described(checkpoint, tmp_path)
    assert (found.sidecar, found.metadata.exp_name) == (SidecarStatus.FOREIGN, "mine")
    assert len(found.sidecar_identities) == 2


def test_a_stale_long_name_gives_way_to_the_short_one(checkpoint: Path, tmp_path: Path) -> None:
    beside(checkpoint, b"exp_name: old\nsource: {size_bytes: 1}\n")
    beside(checkpoint, b"exp_name: new\n", ".metadata.yaml")
    found = described(checkpoint, tmp_path)
    assert (found.sidecar, found.metadata.exp_name) == (SidecarStatus.FOREIGN, "new")
    assert "metadata.stale" in codes(found)


@pytest.mark.parametrize(
    "data", [b"", b"a: [", b"!!python/object/apply:os.system [id]", b"[" * 100_000, bytes(2 << 20)]
)
def test_a_broken_sidecar_or_config_is_a_finding_and_hides_nothing(
    checkpoint: Path, tmp_path: Path, data: bytes
) -> None:
    beside(checkpoint, data)
    write(tmp_path / "exp/.hydra/config.yaml", data)
    found = described(checkpoint, tmp_path)
    assert found.sidecar is SidecarStatus.INVALID
    assert found.inspection.is_valid
    assert (found.metadata.exp_name, found.metadata.training.epoch) == ("exp", 0)
    assert set(codes(found)) == {"metadata.invalid", "config.invalid"}
    assert found.config is None
    assert found.config_identity is not None


def test_findings_come_worst_first(checkpoint: Path, tmp_path: Path) -> None:
    write(tmp_path / "exp/.FAILURE", "")
    (tmp_path / "exp/.hydra/config.yaml").unlink()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    found = described(checkpoint, tmp_path)
    severities = [f.severity for f in found.findings]
    assert severities == sorted(severities, key=[Severity.ERROR, Severity.WARNING, Severity.INFO].index)
    assert severities[0] is Severity.ERROR
    assert {"config.missing", "run.failed", "metadata.missing"} < set(codes(found))


def test_the_fast_path_trusts_only_ours_that_matches_size_and_time_exactly(checkpoint: Path, tmp_path: Path) -> None:
    sidecar = beside(checkpoint, ours(checkpoint, tmp_path))
    assert fast(checkpoint, sidecar) is Level.NONE
    status = os.stat(checkpoint)
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fast(checkpoint, sidecar) is Level.STRUCTURE
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fast(checkpoint, sidecar) is Level.NONE
    sidecar.write_bytes(sidecar.read_bytes().replace(b"epoch: 0", b"epoch: 9"))
    with pytest.raises(AssertionError):  # an edit by hand is believed, as a person's, and the file is read
        fast(checkpoint, sidecar)


def test_the_written_sidecar_says_which_state_of_the_file_it_describes(checkpoint: Path, tmp_path: Path) -> None:
    found = described(checkpoint, tmp_path)
    source = sidecar_for(found, generated_at=0.0).source
    assert source.size_bytes == checkpoint.stat().st_size
    assert source.archive_id == found.inspection.archive_id is not None
    assert source.generated_at == "1970-01-01T00:00:00.000Z"
    assert (source.generated_by or "").startswith("ckptd")


def test_writing_and_describing_agree_on_the_identity(checkpoint: Path, tmp_path: Path) -> None:
    path = os.fsencode(checkpoint.relative_to(tmp_path))
    data = render(sidecar_for(described(checkpoint, tmp_path)))
    with opened(tmp_path) as root_fd:
        identity = write_sidecar(root_fd, sidecar_path(path), data, like=os.stat(checkpoint))
    assert described(checkpoint, tmp_path).sidecar_identities == (identity,)


def test_no_metadata_is_written_for_an_invalid_file(tmp_path: Path) -> None:
    path = write(tmp_path / "best.ckpt", "<html>")
    with pytest.raises(ValueError, match="no metadata is written"):
        sidecar_for(described(path, tmp_path))


def test_a_file_that_could_not_be_parsed_is_known_by_its_name() -> None:
    request = DescribeRequest(checkpoint_path="/r/exp/epoch=3.ckpt", relative_path=b"exp/epoch=3.ckpt")
    identity = FileIdentity(1, 2, 3, 4)
    found = failed_description(request, identity, finding("worker.crashed", "it died"))
    assert (found.metadata.exp_name, found.metadata.training.epoch) == ("exp", 3)
    assert found.inspection.identity == identity
    assert not found.inspection.is_valid
    assert found.inspection.level is Level.NONE
    assert codes(found)[0] == "worker.crashed"


def test_what_cannot_be_opened_is_unreadable_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        describe_checkpoint(str(tmp_path / "gone.ckpt"))
    with pytest.raises(Unreadable, match="beneath"):
        describe_checkpoint(str(save(tmp_path / "a.ckpt")), root=str(tmp_path / "other"))


def test_without_a_root_the_run_directory_is_found_all_the_same(checkpoint: Path) -> None:
    found = describe_checkpoint(str(checkpoint))
    assert (found.metadata.exp_name, found.metadata.checkpoint_path) == ("configured", str(checkpoint))


def test_a_link_to_a_checkpoint_is_described_in_its_own_place(checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "picked/best.ckpt"
    link.parent.mkdir()
    link.symlink_to(checkpoint)
    assert described(link, tmp_path).metadata.exp_name == "picked"
    assert described(link, tmp_path).metadata.training.epoch == 0


def test_a_name_that_is_not_utf8_is_described(tmp_path: Path) -> None:
    import msgspec

    save(tmp_path / "exp/a.ckpt").rename(os.fsdecode(os.fsencode(tmp_path) + b"/exp/\xff.ckpt"))
    found = describe_checkpoint(os.fsdecode(os.fsencode(tmp_path) + b"/exp/\xff.ckpt"), root=str(tmp_path))
    assert found.metadata.checkpoint_path == f"{tmp_path}/exp/\\xff.ckpt"
    msgspec.msgpack.encode(found)


def test_lightnings_scores_go_to_the_files_they_belong_to(tmp_path: Path) -> None:
    """`last.ckpt` holds the best file's score in its state and must not be shown with it."""
    directory = tmp_path / "exp/checkpoints"
    train(directory)
    best = described(directory / "best.ckpt", tmp_path).metadata
    assert best.metrics.hmean == pytest.approx(0.5)
    assert (best.training.epoch, best.checkpointing.monitor, best.checkpointing.mode) == (0, "val/hmean", "max")
    last = described(directory / "last.ckpt", tmp_path).metadata
    assert last.training.epoch == 2
    assert last.metrics.flat() == {}
    kept = sorted(directory.glob("epoch=*/*.ckpt"))
    assert [path.parent.name for path in kept] == ["epoch=1-val", "epoch=2-val"]
    for epoch, path in enumerate(kept, start=1):
        metadata = described(path, tmp_path).metadata
        assert metadata.exp_name == "exp"
        assert metadata.training.epoch == epoch
        assert metadata.metrics.validation_loss == pytest.approx(1 - epoch / 10)
        assert metadata.metrics.hmean == pytest.approx(0.5 - epoch / 10)


def train(directory: Path) -> None:
    import warnings

    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.layer(batch).mean()

        def validation_step(self, batch: torch.Tensor, _: int) -> None:
            self.log("val/hmean", 0.5 - self.current_epoch / 10)
            self.log("val_loss", 1 - self.current_epoch / 10)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = torch.utils.data.DataLoader(torch.randn(4, 2), batch_size=2)
    savers = [
        ModelCheckpoint(directory, "best", monitor="val/hmean", mode="max"),
        ModelCheckpoint(
            directory, "{epoch}-{val/hmean:.3f}", monitor="val_loss", mode="min", save_top_k=2, save_last=True
        ),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=3,
            callbacks=savers,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Module(), batches, batches)


def test_a_disk_that_does_not_answer_makes_a_file_unreadable_and_is_no_fault_of_the_parser(tmp_path: Path) -> None:
    """As a disk that fails, a closed descriptor refuses fstat."""
    fd = os.open(write(tmp_path / "a.ckpt", b"whatever"), os.O_RDONLY)
    os.close(fd)
    request = DescribeRequest(checkpoint_path="a.ckpt", relative_path=b"a.ckpt")
    with pytest.raises(Unreadable, match="fstat failed"):
        describe_opened(request, OpenedFiles(checkpoint=fd))
