"""A tree with everything in it that real ones have and that a walk could trip over."""

import os
import socket
from pathlib import Path

LATIN = b"caf\xe9.ckpt"
NEWLINE = b"two\nlines.ckpt"


def build_odd_tree(base: Path) -> tuple[Path, Path, Path]:
    """Make a root, a second directory that links may lead to, and one that they may not; returns the three."""
    root, allowed, outside = base / "outputs", base / "allowed", base / "outside"
    checkpoints = root / "exp" / "checkpoints"
    for directory in (checkpoints, allowed / "deep", outside, root / "empty"):
        directory.mkdir(parents=True)
    for path in (checkpoints / "best.ckpt", allowed / "deep" / "far.ckpt", outside / "secret.ckpt"):
        path.write_bytes(b"x")
    raw = os.fsencode(checkpoints)
    for name in (LATIN, NEWLINE):
        with open(os.path.join(raw, name), "wb") as file:
            file.write(b"x")
    (checkpoints / ".hidden.ckpt").write_bytes(b"")
    (checkpoints / "best.ckpt.bak").write_bytes(b"")
    _make_odd_kinds(root)
    _make_links(root, allowed, outside)
    (checkpoints / "best.ckpt.metadata.yaml").write_text("a: 1\n")
    (checkpoints / "gone.ckpt.metadata.yaml").write_text("a: 1\n")
    (root / "exp" / "config.yaml").write_text("a: 1\n")
    return root, allowed, outside


def _make_odd_kinds(root: Path) -> None:
    os.mkfifo(root / "fifo.ckpt")
    (root / "directory.ckpt").mkdir()
    (root / "directory.ckpt" / "inner.ckpt").write_bytes(b"x")
    # A path to bind has at most 107 bytes; temporary directories are often longer.
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(root)
        try:
            listener.bind("socket.ckpt")
        finally:
            os.chdir(here)


def _make_links(root: Path, allowed: Path, outside: Path) -> None:
    links = root / "links"
    links.mkdir()
    (links / "last.ckpt").symlink_to("../exp/checkpoints/best.ckpt")
    (links / "absolute.ckpt").symlink_to(root / "exp" / "checkpoints" / "best.ckpt")
    (links / "dangling.ckpt").symlink_to("nowhere.ckpt")
    (links / "self.ckpt").symlink_to("self.ckpt")
    (links / "to_fifo.ckpt").symlink_to("../fifo.ckpt")
    (links / "out.ckpt").symlink_to(outside / "secret.ckpt")
    (links / "permitted.ckpt").symlink_to(allowed / "deep" / "far.ckpt")
    (links / "out").symlink_to(outside)
    (links / "storage").symlink_to(allowed)
    (links / "up").symlink_to("..")
    (links / "inside").symlink_to("../exp/checkpoints")
    (allowed / "deep" / "loop").symlink_to(allowed)
