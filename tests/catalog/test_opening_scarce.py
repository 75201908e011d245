"""Opening a checkpoint when descriptors run out: what could not be opened is not taken for absent."""

import contextlib
import errno
import os
import pathlib
import resource
from collections.abc import Iterator

import pytest

from ckptd.catalog.builder import CatalogOptions, build_catalog
from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.opening import open_checkpoint
from ckptd.validators.errors import Unreadable
from tests.service.checkpoints import checkpoint_bytes, write_in_place


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """This process may open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        last = -1
        while last <= highest:  # no number is left unused below the limit
            last = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, hard))
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
        with free_descriptors(1), pytest.raises(OSError, match="Too many open files") as refused:
            open_checkpoint(root_fd, b"a.ckpt", companions)
        assert refused.value.errno == errno.EMFILE
        assert len(os.listdir("/proc/self/fd")) == before, "nothing is left open"
    finally:
        os.close(root_fd)


def test_a_description_that_was_made_with_few_descriptors_is_that_of_many_or_none(tmp_path: pathlib.Path) -> None:
    """The library and the callbacks said "no metadata" of a file that had some, where the process had too much open."""
    write_in_place(tmp_path / "a.ckpt", checkpoint_bytes())
    (tmp_path / "a.ckpt.metadata.yaml").write_text("exp_name: mine\n")
    (tmp_path / "hparams.yaml").write_text("lr: 0.1\n")
    path = str(tmp_path / "a.ckpt")
    expected = describe_checkpoint(path, root=str(tmp_path))
    assert expected.sidecar is not None
    assert expected.config_path is not None
    refused = 0
    for count in range(10):
        with free_descriptors(count):
            try:
                description = describe_checkpoint(path, root=str(tmp_path))
            except Unreadable as error:
                refusal: Unreadable | None = error
            else:
                refusal = None
                assert description == expected, f"with {count} free descriptors"
        if refusal is not None:
            assert (refusal.errno, "Too many open files" in str(refusal)) == (errno.EMFILE, True)
            refused += 1
    assert 3 <= refused < 10, "it needs several, and not all of these"


def test_a_catalog_that_was_built_with_few_descriptors_never_says_that_there_is_no_metadata(
    tmp_path: pathlib.Path,
) -> None:
    write_in_place(tmp_path / "run/a.ckpt", checkpoint_bytes())
    (tmp_path / "run/a.ckpt.metadata.yaml").write_text("exp_name: mine\n")
    (tmp_path / "run/hparams.yaml").write_text("lr: 0.1\n")
    options = CatalogOptions(roots=(str(tmp_path),))
    [expected] = build_catalog(options).entries
    whole = 0
    for count in range(12):
        with free_descriptors(count):
            result = build_catalog(options)
        if result.unreachable:
            assert set(result.unreachable.values()) == {"Too many open files"}
            assert not result.entries, f"with {count} free descriptors"
        else:
            assert result.entries == [expected], f"with {count} free descriptors"
            whole += 1
    assert 0 < whole < 12, "it needs several, and not all of these"
