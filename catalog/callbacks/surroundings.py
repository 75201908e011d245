"""Where a training runs: Hydra's output directory, the run of W&B."""

import os
import sys
from collections.abc import Iterable
from typing import Any


def hydra_config_path() -> str | None:
    """The config that Hydra composed for this process, as it keeps it in the run's directory; None without Hydra."""
    module = sys.modules.get("hydra.core.hydra_config")  # imported only where Hydra runs the training
    if module is None or not module.HydraConfig.initialized():
        return None
    config = module.HydraConfig.get()
    if config.output_subdir is None or config.runtime.output_dir is None:
        return None
    path = os.path.join(os.path.abspath(config.runtime.output_dir), config.output_subdir, "config.yaml")
    return path if os.path.isfile(path) else None


def wandb_run_id(loggers: Iterable[Any]) -> str | None:
    """The id of the run that a WandbLogger writes; None where there is none."""
    for logger in loggers:
        if any(kind.__name__ == "WandbLogger" for kind in type(logger).__mro__):
            version = logger.version  # the run's id, without starting a run
            return None if version is None else str(version)
    return None
