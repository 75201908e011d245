"""What events say of checkpoints that are directories: one hint, whatever the number of files."""

import os
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
import pytest
import structlog

from ckptd.catalog.entry import Identities
from ckptd.catalog.roots import Root
from ckptd.catalog.store import Catalog, Change
from ckptd.daemon.completeness import Completeness
from ckptd.daemon.hints import Hints
from ckptd.daemon.key import Key
from ckptd.daemon.mounts import MountTable
from ckptd.daemon.moves import Mark
from ckptd.daemon.settings import Settings
from ckptd.daemon.tree import Tree
from ckptd.validators.inspection import FileIdentity
from tests.catalog.catalog_records import drop, put, record_of


class Hinted:
    """In the pipeline's place: remembers what it is told to look at."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self.repeated: list[bytes] = []
        self.sightings: dict[Mark, bytes] = {}

    def sighted(self, sightings: Iterable[tuple[Mark, Key]]) -> None:
        """Take note."""
        self.sightings |= {mark: key.path for mark, key in sightings}

    def repeat_looks_under_way(self, root: Root, subtrees: Collection[bytes] = (b"",)) -> list[Key]:
        """Take note."""
        self.repeated += subtrees
        return []

    def hint(self, keys: Iterable[Key], *, must_read: bool = False) -> None:
        """Take note."""
        self.paths += [key.path for key in keys]


class Hinting:
    """A tree of a catalog in which something is listed."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = Root(os.fsencode(root))
        self.catalog = Catalog("testing")
        self.pipeline = Hinted()
        self.tree = Tree(
            self.root,
            catalog=self.catalog,
            pipeline=self.pipeline,  # type: ignore[arg-type]
            completeness=Completeness[Key]([self.root.name]),
            mounts=MountTable(),
            save_mounts=_nothing,  # type: ignore[arg-type]
            may_write=lambda _: False,
            on_swept=lambda _: None,
            roots=[self.root],
            allowed_targets=(),
            settings=Settings(roots=(str(root),), state_dir=str(root)),
            log=structlog.stdlib.get_logger(),
        )

    def publish(self, path: str, *, directory: bool) -> None:
        """Publish an entry."""
        identities = Identities(FileIdentity(1, 2, 3, 4), shards="blake2b:1" if directory else None)
        self._publish(put(msgspec.structs.replace(record_of(path, root=self.root.name), identities=identities)))

    def drop(self, path: str) -> None:
        """Publish a deletion."""
        self._publish(drop(path, root=self.root.name))

    def _publish(self, change: Change) -> None:
        batch = self.catalog.prepare([change])
        assert batch is not None
        self.catalog.publish(batch)

    def told(self, *files: str, links: tuple[str, ...] = ()) -> list[bytes]:
        """What is looked at after events at these paths."""
        self.pipeline.paths.clear()
        encoded = frozenset(path.encode() for path in (*files, *links))
        self.tree.on_hints(Hints(root=self.root, files=encoded, links=frozenset(path.encode() for path in links)))
        return sorted(set(self.pipeline.paths))


async def _nothing(*_: Any) -> None: ...


@pytest.fixture
def hinting(tmp_path: pathlib.Path) -> Hinting:
    return Hinting(tmp_path)


def test_a_thousand_events_in_a_listed_directory_are_one_hint(hinting: Hinting) -> None:
    hinting.publish("run/step-1", directory=True)
    names = [f"run/step-1/__{n}_0.distcp" for n in range(1000)]
    assert hinting.told(*names, "run/step-1/inner.ckpt", "run/step-1/a/b/c.metadata.yaml") == [b"run/step-1"]


def test_a_file_that_may_make_a_directory_a_checkpoint_hints_the_two_above_it(hinting: Hinting) -> None:
    assert hinting.told("exp/run/step-1/.metadata") == [b"exp/run", b"exp/run/step-1"]
    assert hinting.told("checkpoint-5/trainer_state.json") == [b"checkpoint-5"]
    assert hinting.told(".metadata") == []
    assert hinting.told("exp/run/step-1/notes.txt") == []


def test_an_ordinary_checkpoint_hints_nothing_but_itself(hinting: Hinting) -> None:
    assert hinting.told("exp/run/best.ckpt") == [b"exp/run/best.ckpt"]


def test_a_listed_directory_that_vanishes_is_hinted_whatever_its_name(hinting: Hinting) -> None:
    hinting.publish("run/step-1.tmp", directory=True)
    assert hinting.told("run/step-1.tmp", "run/other.tmp") == [b"run/step-1.tmp"]


def test_a_sidecar_beside_a_listed_directory_hints_the_directory(hinting: Hinting) -> None:
    hinting.publish("run/checkpoint-5", directory=True)
    assert hinting.told("run/checkpoint-5.metadata.yaml") == [b"run/checkpoint-5"]


def test_a_link_is_hinted_whatever_its_name(hinting: Hinting) -> None:
    assert hinting.told(links=("run/newest",)) == [b"run/newest"]


def test_a_directory_that_becomes_a_checkpoint_is_scanned_where_something_in_it_is_listed(hinting: Hinting) -> None:
    hinting.publish("run/step-1/inner.ckpt", directory=False)
    hinting.publish("run/step-2", directory=True)
    assert hinting.tree._subtrees == set()
    hinting.publish("run/step-1", directory=True)
    assert hinting.tree._subtrees == {b"run/step-1"}


def test_a_directory_that_ceases_to_be_one_is_scanned(hinting: Hinting) -> None:
    hinting.publish("run/step-1", directory=True)
    assert hinting.tree._subtrees == set()
    hinting.drop("run/step-1")
    assert hinting.tree._subtrees == {b"run/step-1"}
    hinting.publish("run/step-3", directory=False)
    hinting.drop("run/step-3")
    assert hinting.tree._subtrees == {b"run/step-1"}


def test_only_what_is_listed_by_its_name_counts_as_a_place_to_move_to(tmp_path: pathlib.Path) -> None:
    """`a.ckpt` renamed to `a.bak` is removed: nothing will ever be listed there."""
    hinting = Hinting(tmp_path)
    sightings = {(1, 2, 3): b"run/a.ckpt", (2, 2, 3): b"run/a.bak", (3, 2, 3): b"run/config.yaml"}
    hinting.tree.on_hints(Hints(root=hinting.root, sightings=sightings))
    assert hinting.pipeline.sightings == {(1, 2, 3): b"run/a.ckpt"}
