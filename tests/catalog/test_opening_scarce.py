"""Opening a checkpoint when descriptors run out: what could not be opened is not taken for absent."""

import contextlib
import errno
import os
import pathlib
import resource
from collections.abc import Iterator

import pytest

from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.opening import open_checkpoint
from tests.service.checkpoints import checkpoint_bytes, write_in_place


@contextlib.contextmanager
def one_free_descriptor() -> Iterator[None]:
    """This process may open one more file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        last = -1
        while last <= highest:  # no number is left unused below the limit
            last = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 2, hard))
        yield


@pytest.mark.parametrize("name", ["a.ckpt.metadata.yaml", "a.config.yaml", "hparams.yaml"])
def test_a_companion_for_which_no_descriptor_is_free_is_not_taken_for_absent(tmp_path: pathlib.Path, name: str) -> None:
    """It was published without its metadata until somebody looked again."""
    write_in_place(tmp_path / "a.ckpt", checkpoint_bytes())
    (tmp_path / name).write_text("exp_name: mine\n")
    root_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        companions = find_companions(DirectFiles(root_fd), b"a.ckpt")
        before = len(os.listdir("/proc/self/fd"))
        with one_free_descriptor(), pytest.raises(OSError, match="Too many open files") as refused:
            open_checkpoint(root_fd, b"a.ckpt", companions)
        assert refused.value.errno == errno.EMFILE
        assert len(os.listdir("/proc/self/fd")) == before, "nothing is left open"
    finally:
        os.close(root_fd)
