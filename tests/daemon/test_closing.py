"""Closing: a close that does not return keeps its own root's thread, and nobody else."""

import os
import pathlib
import threading

from ckptd.catalog.roots import Root
from ckptd.daemon.closing import Closer
from tests.service.daemons import eventually


def test_a_close_that_hangs_holds_up_neither_the_caller_nor_another_root(tmp_path: pathlib.Path) -> None:
    roots = [Root(os.fsencode(tmp_path / name)) for name in ("hangs", "works")]
    answers, closed = threading.Event(), list[str]()
    closer = Closer()
    closer.close(roots[0], answers.wait)
    closer.close(roots[0], lambda: closed.append("hangs"))
    closer.close(roots[1], lambda: closed.append("works"))
    eventually(lambda: closed == ["works"], "the other root's is closed")
    answers.set()
    eventually(lambda: closed == ["works", "hangs"], "and this one's when its disk answers")


def test_a_close_that_fails_keeps_none_from_being_closed(tmp_path: pathlib.Path) -> None:
    root, reading, writing = Root(os.fsencode(tmp_path)), *os.pipe()
    closer = Closer()

    def fail() -> None:
        raise OSError("the disk does not flush")

    closer.close(root, fail)
    closer.close(root, lambda: os.close(writing))
    assert os.read(reading, 1) == b"", "the end of a pipe that nobody writes to"
    os.close(reading)
