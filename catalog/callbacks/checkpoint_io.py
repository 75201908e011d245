"""DigestingCheckpointIO for Lightning: the digest of each checkpoint, taken while it is written."""

import importlib
import importlib.util
import sys
from typing import IO, Any, cast

from .digesting import written_whole
from .saves import local_path

_LIBRARIES = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}


def _bases() -> tuple[type, ...]:
    """TorchCheckpointIO of the libraries that this process uses; of one that is installed if it uses none yet."""
    used = [fabric for library, fabric in _LIBRARIES.items() if library in sys.modules]
    installed = [fabric for fabric in _LIBRARIES.values() if importlib.util.find_spec(fabric.split(".")[0]) is not None]
    if not installed:
        raise ImportError("DigestingCheckpointIO needs Lightning: pip install lightning, or pytorch-lightning")
    return tuple(
        importlib.import_module(f"{name}.plugins.io.torch_io").TorchCheckpointIO for name in used or installed[:1]
    )


class DigestingCheckpointIO(*_bases()):  # type: ignore[misc]
    """Saves as Lightning does, whole or not at all, and keeps the digest for what `MetadataCallback` writes.

    Give it to the Trainer as a plug-in, alone or within AsyncCheckpointIO:
    `Trainer(plugins=[DigestingCheckpointIO()], callbacks=[MetadataCallback()])`. The digest is computed by a second
    thread while the first one writes. Checkpoints on remote filesystems are saved as ever, without a digest; strategies
    that write directories (FSDP, DeepSpeed) save by themselves.
    """

    def __init__(self, *, durable: bool = False) -> None:
        """Args:
        durable: wait at each save until the disk has it. Lightning itself does not.
        """
        super().__init__()
        self.durable = durable

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: what to save.
            path: where.
            storage_options: not used by this class either.

        Raises:
            TypeError: storage options were given.
            OSError: the system refused.
        """
        local = local_path(path)
        if local is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        import torch

        with written_whole(local, durable=self.durable) as (file, _):
            torch.save(checkpoint, cast("IO[bytes]", file))
