"""A link leads a privileged daemon no further than it leads its owner: else what it reads ends beside the link."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.catalog.builder import CatalogOptions, build_catalog
from ckptd.catalog.experiment import DirectFiles, find_companions
from ckptd.catalog.roots import open_beneath
from tests.service.checkpoints import checkpoint_bytes

pytestmark = pytest.mark.root
ALICE, BOB, TEAM = 61_001, 61_002, 61_100
SECRET = "the-name-of-bobs-project"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with a run of alice's, and bob's private directory."""
    for path in ("alice/run/checkpoints", "bob/private/.hydra"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "alice/run/checkpoints/a.ckpt").write_bytes(checkpoint_bytes())
    for name in ("bob/private/.hydra/config.yaml", "bob/private/metrics.csv"):
        (tmp_path / name).write_text(f"exp_name: {SECRET}\n")
    _own(tmp_path / "alice", ALICE, ALICE)
    _own(tmp_path / "bob", BOB, TEAM)
    (tmp_path / "bob/private").chmod(0o700)
    return tmp_path


@pytest.fixture
def root_fd(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _own(path: Path, uid: int, gid: int) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, uid, gid, follow_symlinks=False)


def _link(tree: Path, name: str, target: str, uid: int = ALICE, gid: int = ALICE) -> bytes:
    (tree / name).symlink_to(os.path.relpath(tree / target, (tree / name).parent))
    os.chown(tree / name, uid, gid, follow_symlinks=False)
    return os.fsencode(name)


def _is_opened(root_fd: int, path: bytes) -> bool:
    try:
        os.close(open_beneath(root_fd, path))
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("alice/run/config.yaml", "bob/private/.hydra/config.yaml"),
        ("alice/run/.hydra", "bob/private/.hydra"),
        ("alice/run/checkpoints/a.config.yaml", "bob/private/.hydra/config.yaml"),
        ("alice/run/metrics.csv", "bob/private/metrics.csv"),
    ],
)
def test_what_a_user_may_not_read_comes_into_no_sidecar_of_his_by_a_link(name: str, target: str, tree: Path) -> None:
    """Root reads all, and gives the sidecar to the owner of the checkpoint."""
    _link(tree, name, target)
    build_catalog(CatalogOptions(roots=(str(tree),), write_sidecars=True))
    sidecar = tree / "alice/run/checkpoints/a.ckpt.metadata.yaml"
    assert sidecar.exists()
    assert SECRET not in sidecar.read_text()


def test_such_a_link_is_no_companion_either(tree: Path, root_fd: int) -> None:
    """Whoever looks and whoever opens agree, else the checkpoint would be read again with each sweep."""
    _link(tree, "alice/run/.hydra", "bob/private/.hydra")
    found = find_companions(DirectFiles(root_fd), b"alice/run/checkpoints/a.ckpt")
    assert found.config is None
    assert DirectFiles(root_fd).status(b"alice/run/.hydra/config.yaml") is None


def test_a_directory_that_is_a_link_out_of_the_root_holds_no_companion(tree: Path, root_fd: int) -> None:
    (tree.parent / "outside").mkdir(exist_ok=True)
    (tree.parent / "outside/config.yaml").write_text(f"exp_name: {SECRET}\n")
    (tree / "alice/run/.hydra").symlink_to("../../../outside")
    assert DirectFiles(root_fd).status(b"alice/run/.hydra/config.yaml") is None


def test_a_link_is_followed_where_its_owner_could_follow_it(tree: Path, root_fd: int) -> None:
    link = _link(tree, "alice/run/config.yaml", "bob/private/.hydra/config.yaml")
    assert not _is_opened(root_fd, link)
    (tree / "bob/private").chmod(0o711)
    assert _is_opened(root_fd, link), "everybody may read it"
    (tree / "bob/private/.hydra/config.yaml").chmod(0o640)
    assert not _is_opened(root_fd, link)
    (tree / "bob/private").chmod(0o750)
    of_the_team = _link(tree, "alice/run/hparams.yaml", "bob/private/.hydra/config.yaml", ALICE, TEAM)
    assert _is_opened(root_fd, of_the_team)
    assert _is_opened(root_fd, _link(tree, "bob/own.yaml", "bob/private/.hydra/config.yaml", BOB, BOB))
    assert _is_opened(root_fd, _link(tree, "admins.yaml", "bob/private/.hydra/config.yaml", 0, 0))


def test_the_first_link_of_a_chain_counts(tree: Path, root_fd: int) -> None:
    """What is read ends beside that one, whoever made the others."""
    _link(tree, "bob/own.yaml", "bob/private/.hydra/config.yaml", BOB, BOB)
    assert not _is_opened(root_fd, _link(tree, "alice/run/config.yaml", "bob/own.yaml"))
