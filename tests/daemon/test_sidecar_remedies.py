"""What the log tells whoever finds sidecars refused fits why they were."""

import errno

import pytest

from ckptd.daemon.sidecars import remedy_for


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "write access"),
        (errno.EROFS, "write access"),
        (errno.EEXIST, "remove what has the name"),
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.ENAMETOOLONG, "shorten the checkpoint's name"),
        (errno.EIO, "see whether the disk"),
        (None, "see whether the disk"),
    ],
)
def test_the_remedy_is_that_of_the_error(number: int | None, said: str) -> None:
    """A FIFO in the place of a sidecar and a full disk were both to be mended by write access."""
    assert said in remedy_for(number)
    assert ("write access" in remedy_for(number)) is (said == "write access")
    assert ("by itself" in remedy_for(number)) is (number != errno.ENAMETOOLONG)
