"""The zygote of level `weights`: as `zygote`, with torch loaded once for all of its children.

Its children live behind the same walls: what torch does there, reducing pieces of tensors with one thread, needs no
other system call. Their memory is limited as everywhere, on top of what the zygote takes for torch.
"""

import os
import sys

from ckptd.catalog.describe import describe_opened
from ckptd.validators.checks import weights
from ckptd.validators.inspection import Level

from . import zygote

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def preload() -> None:
    """Import torch, alone: threads would be lost at the fork, and a wall around one thread is none around others."""
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        weights.warm_up()
    except weights.TorchMissing as missing:
        sys.exit(str(missing))


if __name__ == "__main__":
    zygote.main(describe_opened, preload, Level.WEIGHTS, zygote.with_architectures)
