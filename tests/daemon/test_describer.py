"""What is made of answers that cannot be about what was asked."""

import os
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
import structlog

from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles
from ckptd.catalog.entry import Identities
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Catalog
from ckptd.daemon.describer import MISTAKEN_ANSWERS, Describer, LookAgain
from ckptd.daemon.key import Key
from ckptd.daemon.look import Opened, Sight
from ckptd.daemon.metrics import Metrics
from ckptd.daemon.settle import LookKind
from ckptd.validators.reader import identity_of
from tests.service.checkpoints import checkpoint_bytes

pytestmark = pytest.mark.anyio


class Mistaken:
    """A pool whose every answer is about another file."""

    def __init__(self) -> None:
        self.honest = False

    async def describe(self, request: DescribeRequest, files: OpenedFiles) -> Description:
        description = await anyio.to_thread.run_sync(describe_opened, request, files)
        if self.honest:
            return description
        other = msgspec.structs.replace(description.inspection.identity, inode=1)
        return msgspec.structs.replace(
            description, inspection=msgspec.structs.replace(description.inspection, identity=other)
        )


def _sight(path: Path) -> Sight:
    fd = os.open(path, os.O_RDONLY)
    request = DescribeRequest(checkpoint_path=str(path), relative_path=path.name.encode())
    identities = Identities(identity_of(os.fstat(fd)))
    opened = Opened(request, OpenedFiles(checkpoint=fd), identities, writer=False)
    return Sight(kind=LookKind.SEEN, opened=opened, request=request, identities=identities)


async def test_a_file_whose_answers_are_never_about_it_is_listed_as_that(tmp_path: Path) -> None:
    """It was asked for again at once, 30 times a second and for ever, and no sweep was a proof meanwhile."""
    problems: list[str] = []
    pool = Mistaken()
    describer = Describer(
        catalog=Catalog("instance", lambda: 0.0),
        pool=pool,  # type: ignore[arg-type]
        lookout=None,  # type: ignore[arg-type]
        on_problem=lambda what, _path, _message: problems.append(what),
        metrics=Metrics(),
        log=structlog.stdlib.get_logger(),
    )
    path = tmp_path / "a.ckpt"
    await anyio.Path(path).write_bytes(checkpoint_bytes())
    key = Key(Root(os.fsencode(tmp_path)), b"a.ckpt")
    for _ in range(MISTAKEN_ANSWERS - 1):
        with pytest.raises(LookAgain):
            await describer.describe(key, _sight(path))
    _, description = await describer.describe(key, _sight(path))
    assert description is not None
    assert [found.code for found in description.inspection.findings] == ["worker.crashed"]
    assert description.inspection.identity == identity_of(os.stat(path))
    describer.concluded(key)
    with pytest.raises(LookAgain):
        await describer.describe(key, _sight(path))
    pool.honest = True
    _, description = await describer.describe(key, _sight(path))
    assert description is not None
    assert description.inspection.is_valid
    assert set(problems) == {"an answer about another file was refused", "worker died"}
