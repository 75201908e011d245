"""What is remembered of a file's bytes, what a later reading makes of it, and how long it is kept."""

import os
import pathlib
import sqlite3

import msgspec
import pytest
import torch

from ckptd.catalog.description import Description
from ckptd.catalog.entry import Health, Identities, Record, rfc3339
from ckptd.catalog.state_file import APPLICATION_ID, SCHEMA_VERSION
from ckptd.catalog.verification import Verification, apply, failed
from ckptd.validators import Format, Level
from ckptd.validators.findings import finding
from ckptd.validators.inspection import FileIdentity
from tests.catalog.catalog_records import drop, id_at, put, record_of
from tests.catalog.state_files import description_of, running
from tests.catalog.verified_files import MONDAY, TUESDAY, described, flip, read_through, verify
from tests.validators.checkpoint_files import saved, state_dict
from tests.validators.format_files import WRITERS

IDENTITY = FileIdentity(1, 2, 3, 4)
GOOD = Verification(identity=IDENTITY, asked=Level.CHECKSUM, level=Level.CHECKSUM, verified_at=MONDAY, digest="x:1")


def codes(verification: Verification) -> list[str]:
    return [found.code for found in verification.findings]


@pytest.fixture(params=[*WRITERS, "zip without checksums"], ids=str)
def file(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    """One file of each format; its last tensor is the one that the tests damage."""
    path = tmp_path / "a.ckpt"
    if request.param in WRITERS:
        path.write_bytes(WRITERS[Format(request.param)](state_dict()))
        return path
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path.write_bytes(saved(state_dict()))
    finally:
        torch.serialization.set_crc32_options(before)
    return path


def last_tensor(path: pathlib.Path) -> int:
    """Where a byte of the last tensor's data is."""
    data = path.read_bytes()
    return data.rindex(state_dict()["model.head.weight"].numpy().tobytes())


# ---- what a reading amounts to ---------------------------------------------------------------------------------


def test_whole_files_of_every_format_are_good_and_have_a_digest(file: pathlib.Path) -> None:
    verification = verify(file)
    assert verification.is_good
    assert verification.digest is not None
    assert verification.good_digest == verification.digest
    assert verification.good_at == MONDAY


def test_a_changed_byte_of_a_file_that_was_good_is_bit_rot_in_every_format(file: pathlib.Path) -> None:
    before = verify(file)
    flip(file, last_tensor(file))
    after = verify(file, before, at=TUESDAY)
    assert codes(after)[0] == "archive.bit_rot"
    assert "2025-10-09T08:53:20.000Z" in after.findings[0].message
    assert after.good_at == MONDAY
    assert after.good_digest == before.digest != after.digest


def test_bit_rot_names_the_tensor_where_checksums_tell(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(saved({"state_dict": state_dict()}))
    before = verify(file)
    flip(file, last_tensor(file))
    assert "model.head.weight" in verify(file, before).findings[0].message


@pytest.mark.parametrize("where", ["end record", "directory", "pickle", "local header"])
def test_rot_outside_the_tensors_is_bit_rot_as_well(tmp_path: pathlib.Path, where: str) -> None:
    """Also where so little is left that nothing can be said of the contents."""
    file = tmp_path / "a.ckpt"
    data = saved(state_dict())
    file.write_bytes(data)
    before = verify(file)
    offsets = {
        "end record": data.rindex(b"PK\5\6"),
        "directory": data.index(b"PK\1\2"),
        "pickle": data.index(b"data.pkl") + 80,
        "local header": 0,
    }
    known = described(file).inspection.findings
    flip(file, offsets[where])
    assert known == ()
    assert codes(verify(file, before, at=TUESDAY))[0] == "archive.bit_rot"


def test_a_mismatch_at_the_first_reading_is_no_bit_rot(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(saved(state_dict()))
    flip(file, last_tensor(file))
    first = verify(file)
    assert codes(first) == ["archive.checksum_mismatch"]
    assert first.good_at is None
    assert codes(verify(file, first, at=TUESDAY)) == ["archive.checksum_mismatch"]


def test_rot_stays_rot_at_every_later_reading(file: pathlib.Path) -> None:
    """The digest of the damaged bytes never becomes the one to compare with."""
    good = verify(file)
    flip(file, last_tensor(file))
    rotten = verify(file, good, at=TUESDAY)
    again = verify(file, rotten, at=TUESDAY + 1)
    assert codes(again)[0] == "archive.bit_rot"
    assert again.good_at == MONDAY


def test_bytes_that_are_right_again_are_good_again(file: pathlib.Path) -> None:
    """A disk of a mirror was replaced, or a cable."""
    good = verify(file)
    offset = last_tensor(file)
    flip(file, offset)
    rotten = verify(file, good)
    flip(file, offset)
    healed = verify(file, rotten, at=TUESDAY)
    assert healed.is_good
    assert healed.good_at == TUESDAY


def test_a_new_file_under_the_same_name_is_compared_with_nothing(file: pathlib.Path) -> None:
    before = verify(file)
    data = bytearray(file.read_bytes())
    file.write_bytes(data)  # its modification time is another one
    flip(file, last_tensor(file))
    assert "archive.bit_rot" not in codes(verify(file, before))


def test_another_mode_another_link_and_the_same_bytes_are_good(file: pathlib.Path) -> None:
    before = verify(file)
    file.chmod(0o600)
    os.link(file, file.with_name("b.ckpt"))
    assert not before.is_of(described(file).inspection.identity, None)
    assert verify(file, before).is_good


def test_digests_of_different_kinds_are_not_compared(file: pathlib.Path) -> None:
    """A later version may compute another one; that is no damage."""
    before = msgspec.structs.replace(verify(file), good_digest="blake2b:0")
    after = verify(file, before)
    assert after.is_good
    assert after.good_digest == after.digest


def test_a_failing_disk_does_not_make_us_forget_what_the_good_bytes_were(file: pathlib.Path) -> None:
    good = verify(file)
    problem = finding("file.unreadable", "input/output error")
    unread = failed(good, problem, identity=good.identity, shards=None, asked=Level.CHECKSUM, at=TUESDAY)
    assert unread.is_unreadable
    flip(file, last_tensor(file))
    assert codes(verify(file, unread, at=TUESDAY + 1))[0] == "archive.bit_rot"


# ---- shown with the description --------------------------------------------------------------------------------


def test_a_description_shows_level_digest_and_findings_of_its_verification_once(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(saved(state_dict()))
    flip(file, last_tensor(file))
    description, verification = described(file), verify(file)
    assert description.inspection.is_valid
    shown = apply(apply(description, verification), verification)
    assert shown.inspection.level is Level.CHECKSUM
    assert shown.inspection.digest == verification.digest == read_through(file).digest
    assert shown.verified_at == rfc3339(int(verification.verified_at * 1e9))
    assert not shown.inspection.is_valid
    assert [found.code for found in shown.findings].count("archive.checksum_mismatch") == 1
    assert shown.findings[0].code == "archive.checksum_mismatch"


def test_a_verification_of_another_state_of_the_file_says_nothing(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(saved(state_dict()))
    flip(file, last_tensor(file))
    verification = verify(file)
    file.write_bytes(saved(state_dict()))
    description = described(file)
    assert apply(description, verification) is description


def test_touching_a_damaged_file_takes_its_level_but_not_its_damage(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.ckpt"
    file.write_bytes(saved(state_dict()))
    flip(file, last_tensor(file))
    verification = verify(file)
    file.chmod(0o640)
    shown = apply(described(file), verification)
    assert shown.inspection.level is Level.STRUCTURE
    assert shown.verified_at is None, "this state of the file was not read"
    assert not shown.inspection.is_valid
    file.chmod(0o600)
    good = msgspec.structs.replace(verification, findings=())
    assert apply(described(file), good).inspection.level is Level.STRUCTURE


def test_a_directory_whose_files_changed_is_another_one() -> None:
    of_parts = msgspec.structs.replace(GOOD, shards="abc")
    assert of_parts.is_of(IDENTITY, "abc")
    assert not of_parts.is_of(IDENTITY, "abd")
    assert not of_parts.is_of_same_file(IDENTITY, "abd")


# ---- kept in the state -----------------------------------------------------------------------------------------


def listed(path: str, **fields: object) -> Record:
    record = record_of(path, **fields)
    return msgspec.structs.replace(record, identities=Identities(IDENTITY))


def test_a_verification_is_kept_over_restarts_and_goes_with_its_entry(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        run.change(put(listed("a.ckpt")))
        run.verify("a.ckpt", GOOD)
    with running(tmp_path) as run:
        assert run.state.verification(id_at("a.ckpt")) == GOOD
        assert run.state.oldest_verified() == MONDAY
        assert run.state.unverified(Level.CHECKSUM) == []
        run.change(drop("a.ckpt"))
        assert run.state.verification(id_at("a.ckpt")) is None
        assert run.state.oldest_verified() is None


def test_a_changed_file_is_unverified_and_its_verification_stays_to_compare_with(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        run.change(put(listed("a.ckpt")))
        run.verify("a.ckpt", GOOD)
        run.change(put(listed("a.ckpt", epoch=1)))
        assert run.state.unverified(Level.CHECKSUM) == []
        run.change(put(record_of("a.ckpt")))
        assert run.state.unverified(Level.CHECKSUM) == [id_at("a.ckpt")]
        assert run.state.verified_before(MONDAY + 1, limit=10) == []
        assert run.state.verification(id_at("a.ckpt")) == GOOD


def test_what_was_never_verified_as_far_as_wanted_is_told(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        run.change(*(put(listed(f"{name}.ckpt")) for name in "abcd"))
        run.verify("a.ckpt", GOOD)
        unreadable = finding("file.unreadable", "input/output error")
        run.verify("b.ckpt", failed(None, unreadable, identity=IDENTITY, shards=None, asked=Level.CHECKSUM, at=MONDAY))
        crashed = finding("worker.crashed", "segmentation fault")
        run.verify("c.ckpt", failed(None, crashed, identity=IDENTITY, shards=None, asked=Level.CHECKSUM, at=MONDAY))
        assert sorted(run.state.unverified(Level.CHECKSUM)) == sorted([id_at("b.ckpt"), id_at("d.ckpt")])
        assert len(run.state.unverified(Level.WEIGHTS)) == 4
        assert run.state.verified_before(TUESDAY, limit=10) == [(MONDAY, id_at("a.ckpt"))]


def test_old_verifications_are_told_page_by_page_oldest_first(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        names = [f"{number}.ckpt" for number in range(7)]
        run.change(*(put(listed(name)) for name in names))
        for number, name in enumerate(names):
            run.verify(name, msgspec.structs.replace(GOOD, verified_at=MONDAY + number // 2))
        told: list[tuple[float, str]] = []
        while page := run.state.verified_before(MONDAY + 3, after=told[-1] if told else (0.0, ""), limit=2):
            told += page
        assert [at for at, _ in told] == [MONDAY, MONDAY, MONDAY + 1, MONDAY + 1, MONDAY + 2, MONDAY + 2]
        assert {key for _, key in told} == {id_at(name) for name in names[:6]}


def test_rewriting_the_state_keeps_verifications_of_what_is_still_listed(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        run.change(put(listed("a.ckpt")), put(listed("b.ckpt")), put(listed("c.ckpt")))
        for name in ("a.ckpt", "b.ckpt", "c.ckpt"):
            run.verify(name, GOOD)
        lost = run.catalog.prepare([drop("b.ckpt"), put(record_of("c.ckpt"))])
        assert lost is not None
        run.catalog.publish(lost)
        catalog = run.catalog
        run.state.rewrite("new", list(catalog), catalog.tombstones(), catalog.revision, catalog.floor)
        assert run.state.verification(id_at("a.ckpt")) == GOOD
        assert run.state.verification(id_at("b.ckpt")) is None
        assert run.state.unverified(Level.CHECKSUM) == [id_at("c.ckpt")]


SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    id TEXT PRIMARY KEY, revision INTEGER NOT NULL, entry BLOB NOT NULL, path BLOB NOT NULL,
    identities BLOB NOT NULL, modified_ns INTEGER NOT NULL
);
CREATE TABLE tombstones (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, tombstone BLOB NOT NULL);
CREATE INDEX tombstones_by_revision ON tombstones (revision);
CREATE TABLE descriptions (id TEXT PRIMARY KEY, summary BLOB NOT NULL, tensors BLOB NOT NULL);
"""
"""As versions before the background verification made it."""


def downgrade(path: pathlib.Path) -> None:
    """Put everything in the file at `path` into one of the first schema, in its place."""
    made = path.with_suffix(".made")
    path.rename(made)
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA_1)
        connection.execute("ATTACH ? AS made", (str(made),))
        for table in ("meta", "tombstones", "descriptions"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM made.{table}")
        kept = "id, revision, entry, path, identities, modified_ns"
        connection.execute(f"INSERT INTO entries SELECT {kept} FROM made.entries")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    made.unlink()


def test_a_state_of_the_first_schema_is_upgraded_in_place(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        run.change(put(listed("a.ckpt")), put(listed("b.ckpt")), descriptions={id_at("a.ckpt"): description_of("a")})
        run.change(drop("b.ckpt"))
        instance, before = run.loaded.instance, list(run.catalog)
    downgrade(tmp_path / "state.sqlite3")
    with running(tmp_path) as run:
        assert run.loaded.instance_kept
        assert run.loaded.instance == instance
        assert list(run.catalog) == before
        assert [tombstone.path for tombstone in run.catalog.tombstones()] == ["b.ckpt"]
        assert run.state.description(id_at("a.ckpt")) is not None
        assert run.state.unverified(Level.CHECKSUM) == [id_at("a.ckpt")]
        run.verify("a.ckpt", GOOD)
        assert run.state.notes == []
    with running(tmp_path) as run:
        assert run.state.verification(id_at("a.ckpt")) == GOOD
    connection = sqlite3.connect(tmp_path / "state.sqlite3")
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


def test_an_upgrade_that_cannot_be_made_leaves_the_first_schema_as_it_was(tmp_path: pathlib.Path) -> None:
    """All or nothing: here the name of a new index is taken."""
    with running(tmp_path) as run:
        run.change(put(listed("a.ckpt")))
    path = tmp_path / "state.sqlite3"
    downgrade(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE INDEX verifications_by_age ON entries (revision)")
    connection.commit()
    connection.close()
    with running(tmp_path) as run:
        assert run.paths() == set()
        assert any("set aside" in note for note in run.state.notes)
    (aside,) = tmp_path.glob("state.sqlite3.broken-*Z.000")
    connection = sqlite3.connect(aside)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    assert "verifications" not in tables


def test_a_damaged_verification_is_noted_and_costs_nothing_else(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as run:
        run.change(put(listed("a.ckpt", health=Health.VALID)))
        run.verify("a.ckpt", GOOD)
    connection = sqlite3.connect(tmp_path / "state.sqlite3")
    connection.execute("UPDATE verifications SET verification = x'c1'")
    connection.commit()
    connection.close()
    with running(tmp_path) as run:
        assert run.paths() == {"a.ckpt"}
        assert run.state.verification(id_at("a.ckpt")) is None
        assert len(run.state.notes) == 1


def test_a_description_of_a_directory_is_shown_with_the_verification_of_its_parts() -> None:
    description: Description = description_of("a")
    of_parts = msgspec.structs.replace(GOOD, shards="abc")
    assert apply(description, of_parts, shards="abc").inspection.level is Level.CHECKSUM
    assert apply(description, of_parts, shards=None).inspection.level is Level.STRUCTURE
