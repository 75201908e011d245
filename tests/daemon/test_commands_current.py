"""What a sidecar of ours is about is told from its bytes, and only from ours."""

from ckptd.catalog.description import CheckpointMetadata, Source
from ckptd.catalog.sidecar import Author, recorded_state, render

TIME = "2026-01-02T03:04:05.123456789Z"
METADATA = CheckpointMetadata(exp_name="one", source=Source(size_bytes=10, modified_at=TIME, archive_id="a"))


def test_size_and_time_are_those_of_the_last_section_whatever_a_person_wrote_before():
    fake = {"user": {"note": f"source:\n  size_bytes: 1\n  modified_at: '{TIME}'\n"}, "notes": [{"size_bytes": 2}]}
    assert recorded_state(render(METADATA)) == (10, TIME)
    assert recorded_state(render(METADATA, fake)) == (10, TIME)


def test_anybody_elses_file_says_nothing_also_not_ours_after_an_edit():
    assert recorded_state(render(METADATA, author=Author.TRAINING)) is None
    assert recorded_state(render(METADATA).replace(b"size_bytes: 10", b"size_bytes: 11")) is None
    assert recorded_state(b"") is None
    assert recorded_state(render(CheckpointMetadata())) is None


def test_a_hostile_megabyte_is_judged_by_its_end():
    """It would take hours to try each place where a section may begin."""
    block = b"\nsource:\n" + b"  size_bytes: 1\n" * 50
    assert recorded_state(block * 1300) is None
