"""Progress counts up to a total that only grows, and ends when nothing is pending."""

from ckptd.daemon.mounts import MountTable
from ckptd.daemon.progress import PROGRESS_FROM, Progress


def test_a_little_work_is_not_shown() -> None:
    progress = Progress()
    assert [progress.step(pending) for pending in (1, PROGRESS_FROM - 1, 0)] == [None, None, None]


def test_much_work_is_shown_until_its_end_and_work_that_joins_it_raises_the_total() -> None:
    progress = Progress()
    told = [progress.step(pending) for pending in (200, 150, 180, 0, 0)]
    assert told == [(0, 200), (50, 200), (50, 230), (230, 230), None]


def test_a_mount_table_is_the_same_after_being_kept_and_garbage_is_an_empty_one() -> None:
    table = MountTable({b"": "ext4:1:/", b"data/\xff": "tmpfs:2:/"}, {b"lost/a.ckpt": "xfs:3:/"})
    kept = MountTable.parse(table.render())
    assert (kept.known, kept.lost) == (table.known, table.lost)
    assert MountTable.parse("{}").known == {}
