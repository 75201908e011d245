"""A real training by two processes; run as a script, because Lightning's launcher starts its script again."""

import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from ckptd.catalog.callbacks.lightning import MetadataCallback
from tests.catalog.callbacks.trainings import Net, fit


class Sharded(Net):
    """Its parameters are spread over both processes; Lightning saves a directory of shards."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


def main(strategy: str, directory: str) -> None:
    """Train into `directory`: `ddp`, `ddp_spawn`, `ddp_fork`, or `sharded`."""
    warnings.simplefilter("ignore")
    chosen: Any = strategy
    model = Net()
    if strategy == "sharded":
        chosen = ModelParallelStrategy(save_distributed_checkpoint=True, process_group_backend="gloo")
        model = Sharded()
    run = Path(directory)
    saver = ModelCheckpoint(
        run, monitor="val/hmean", mode="max", save_top_k=2, save_last=True, filename="{epoch}-{step}"
    )
    fit(run, saver, MetadataCallback(), model=model, devices=2, strategy=chosen, max_epochs=4)


if __name__ == "__main__":
    main(*sys.argv[1:])
