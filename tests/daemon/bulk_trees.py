"""Trees with every kind of sidecar, as the bulk command meets them; and what it left, to be compared."""

import os
import re
import shutil
from pathlib import Path

from ckptd.catalog.describe import describe_checkpoint, sidecar_for
from ckptd.catalog.sidecar import render
from tests.daemon.command_line import damage, save

FAKE = """\
# from the old script
checkpoint_path: checkpoints/best.ckpt
exp_name: mine
training: {epoch: 999, global_step: 10}
model: {architecture: ocrmodel}
user: {note: keep me}
"""
_MOMENT = re.compile(rb"^  (?:generated_at|body_digest): .*\n", re.MULTILINE)


def ours(path: Path) -> bytes:
    """What ckptd writes about a checkpoint as it is."""
    return render(sidecar_for(describe_checkpoint(str(path))))


def sidecar_of(path: Path) -> Path:
    """Where it is written."""
    return path.with_name(path.name + ".metadata.yaml")


def mixed_tree(root: Path, missing: int = 3) -> Path:
    """One checkpoint for each state a sidecar can be in, `missing` without one, orphans, a link, one damaged file."""
    runs = root / "exp" / "checkpoints"
    for number in range(missing):
        save(root / f"run{number % 7}" / "checkpoints" / f"epoch={number}.ckpt", epoch=number)
    for name in ("current", "stale", "broken", "wrong", "mine", "ours_stale"):
        save(runs / f"{name}.ckpt", epoch=4)
    sidecar_of(runs / "current.ckpt").write_bytes(ours(runs / "current.ckpt"))
    old = ours(runs / "stale.ckpt")
    sidecar_of(runs / "ours_stale.ckpt").write_bytes(ours(runs / "ours_stale.ckpt"))
    for name in ("stale", "ours_stale"):
        save(runs / f"{name}.ckpt", epoch=5, names=("encoder.weight", "encoder.bias", "head.weight"))
    sidecar_of(runs / "stale.ckpt").write_bytes(old.replace(b"edit anything", b"edited by hand"))
    sidecar_of(runs / "broken.ckpt").write_text("{ not: yaml")
    sidecar_of(runs / "wrong.ckpt").write_text(FAKE)
    sidecar_of(runs / "mine.ckpt").write_bytes(ours(runs / "mine.ckpt").replace(b"exp_name: exp", b"exp_name: paper"))
    damage(save(runs / "cut.ckpt"))
    (runs / "link.ckpt").symlink_to("mine.ckpt")
    sidecar_of(runs / "gone.ckpt").write_bytes(ours(runs / "mine.ckpt"))
    (runs / "noted.metadata.yaml").write_text("exp_name: a person's\n")
    return root


def left(root: Path) -> dict[str, bytes]:
    """Every file but checkpoints, by name: its bytes, without the moment at which it was written."""
    return {
        str(path.relative_to(root)): _MOMENT.sub(b"", path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".ckpt"
    }


def copied(tree: Path, to: Path) -> Path:
    """The tree anew at `to`, with the times of its files."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(tree, to, symlinks=True))


def temporary_files(root: Path) -> list[str]:
    """What a writer that was stopped has left."""
    return [name for _, _, names in os.walk(root) for name in names if ".ckptd-" in name]
