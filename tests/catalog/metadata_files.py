"""Trees, checkpoints and sidecars on disk for the tests of the metadata side."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptd.catalog.describe import describe_checkpoint, sidecar_for
from ckptd.catalog.description import Description
from ckptd.catalog.sidecar import render


def save(path: Path, **extra: Any) -> Path:
    """A small checkpoint as a training saves it."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"model.weight": torch.ones(3, 2)}, **extra}, path)
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@contextmanager
def opened(root: Path) -> Iterator[int]:
    """The root as the daemon holds it."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def described(path: Path, root: Path) -> Description:
    return describe_checkpoint(str(path), root=str(root))


def ours(path: Path, root: Path) -> bytes:
    """The sidecar that ckptd writes for a checkpoint."""
    return render(sidecar_for(described(path, root)))


def codes(description: Description) -> list[str]:
    return [found.code for found in description.findings]
