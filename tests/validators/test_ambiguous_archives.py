"""What two readers may see differently is refused and named; what torch itself writes never is."""

import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from ckptd.validators import Format, Inspection, Level, inspect_checkpoint
from tests.validators.checkpoint_files import codes, inspect_bytes, saved, small_checkpoint, state_dict
from tests.validators.hostile import name_opcode, state_dict_of, tensor_opcodes
from tests.validators.zip_files import LIE, Entry, archive, checkpoint_entries, with_end

PICKLE = state_dict_of(tensor_opcodes())
OTHER = b"\x80\x02}" + name_opcode("os", "system") + b"0."
"""What an attacker wants one of two readers to see."""
DATA = b"archive/data.pkl"
ZIP64_FIELD = struct.pack("<2H2Q", 1, 16, 5, 5)
SYMLINK = 0o120777 << 16
FIFO = 0o010644 << 16


def _with(**change: object) -> list[Entry]:
    """The records of a sound checkpoint, the storage's changed."""
    return checkpoint_entries(storage=Entry(name=b"archive/data/0", data=b"\0" * 16, **change))  # type: ignore[arg-type]


def _and(*more: Entry) -> list[Entry]:
    return [*checkpoint_entries(), *more]


def _overlapping() -> bytes:
    """The second record's header and bytes lie inside the first one's."""
    inner = archive([Entry(name=b"archive/data/0", data=b"\0" * 16)])
    inner = inner[: inner.index(b"PK\x01\x02")]
    outer = Entry(name=DATA, data=PICKLE + inner)
    plain = archive([outer])
    at = plain.index(inner)
    hidden = Entry(name=b"archive/data/0", data=b"\0" * 16, header=at)
    whole = archive([outer, hidden])
    # The second record is named in the directory only: its own bytes are cut out again.
    body = archive([outer])
    directory = whole[whole.index(b"PK\x01\x02") : whole.index(b"PK\x06\x06")]
    offset = body.index(b"PK\x01\x02")
    return body[:offset] + with_end(directory, offset, 2)


def _end_in_comment() -> bytes:
    """An archive whose comment ends in an end record that names another directory."""
    hidden = archive([Entry(name=DATA, data=OTHER)], zip64=False)
    return archive(checkpoint_entries(), comment=hidden[hidden.index(b"PK\x05\x06") :])


AMBIGUOUS = {
    # names
    "the same name twice": archive(_and(Entry(name=DATA, data=OTHER))),
    "names that differ by case": archive(_and(Entry(name=b"archive/DATA.pkl", data=OTHER))),
    "stems that differ by case": archive(_and(Entry(name=b"Archive/data.pkl", data=OTHER))),
    "a NUL in a name": archive(_and(Entry(name=DATA + b"\0", data=OTHER))),
    "a backslash in a name": archive(_and(Entry(name=b"archive\\data.pkl", data=OTHER))),
    "a leading slash": archive(_and(Entry(name=b"/archive/data.pkl", data=OTHER))),
    "a path that climbs": archive(_and(Entry(name=b"archive/../archive/data.pkl", data=OTHER))),
    "a path that climbs at its end": archive(_and(Entry(name=b"archive/data/..", data=OTHER))),
    "a path through here": archive(_and(Entry(name=b"archive/./data.pkl", data=OTHER))),
    "an empty part of a path": archive(_and(Entry(name=b"archive//data.pkl", data=OTHER))),
    "a record outside the stem": archive(_and(Entry(name=b"evil/data.pkl", data=OTHER))),
    "a record without a directory": archive(_and(Entry(name=b"data.pkl", data=OTHER))),
    "another name in the record's own header": archive(_with(local_name=b"archive/data/1")),
    "a longer name in the record's own header": archive(_with(local_name=b"archive/data/01")),
    # flags, methods, sizes
    "encrypted": archive(_with(flags=0x0809)),
    "patch data": archive(_with(flags=0x0828)),
    "strong encryption": archive(_with(flags=0x0848)),
    "masked headers": archive(_with(flags=0x2808)),
    "other flags in the record's own header": archive(_with(local_flags=0x0800)),
    "encrypted by its own header only": archive(_with(local_flags=0x0809)),
    "another method in the record's own header": archive(_with(local_method=8)),
    "another checksum in the record's own header": archive(_with(local_checksum=LIE)),
    "other sizes in the record's own header": archive(_with(local_sizes=(LIE, LIE))),
    "other sizes in its 64 bit field": archive(
        _with(local_sizes=(0xFFFFFFFF, 0xFFFFFFFF), local_extra=struct.pack("<2H2Q", 1, 16, LIE, LIE), flags=0x0800)
    ),
    "sizes of 32 and of 64 bits": archive(_with(extra=ZIP64_FIELD)),
    "two fields of 64 bit sizes": archive(
        _with(extra=struct.pack("<2H2Q", 1, 16, 16, 16) * 2, sizes=(0xFFFFFFFF, 0xFFFFFFFF))
    ),
    "a second name for those who know Unicode": archive(
        _with(extra=struct.pack("<2HBI", 0x7075, 19, 1, zlib.crc32(b"archive/data/0")) + b"archive/data/1")
    ),
    "encryption by AES": archive(_with(extra=struct.pack("<2HH2sBH", 0x9901, 7, 2, b"AE", 3, 0))),
    # places
    "bytes before the first record": archive(checkpoint_entries(), prefix=b"PK\x03\x04 and then something else"),
    "two records at one place": archive(_and(Entry(name=b"archive/data/1", data=b"\0" * 16, header=0))),
    "a record inside another": _overlapping(),
    "an entry inside another": archive(_with(comment=b"PK\x01\x02" + bytes(60))),
    "two end records": archive(checkpoint_entries(), offset64=0),
    "two counts of records": archive(checkpoint_entries(), count64=1),
    "an end record in the comment": _end_in_comment(),
    "a locator that points elsewhere": archive(checkpoint_entries(), located=0),
    # kinds of files
    "a directory with contents": archive(_with(attributes=0x10)),
    "a name that ends in a slash": archive(_and(Entry(name=b"archive/extra/", data=OTHER))),
    "a symbolic link": archive(_with(attributes=SYMLINK, made_by=0x031E)),
    "a pipe": archive(_with(attributes=FIFO, made_by=0x031E)),
}
MALFORMED = {
    "bytes between records": archive(_with(before=OTHER)),
    "bytes between the last record and the directory": archive(checkpoint_entries(), before_directory=OTHER),
    "bytes behind the directory": archive(checkpoint_entries(), after_directory=OTHER),
    "two sizes of a stored record": archive(_with(sizes=(16, 15))),
    "an unknown method": archive(_with(method=12, local_method=12)),
    "an extra field that ends too early": archive(_with(extra=b"FB\xff\x00Z")),
    "64 bit sizes that are not there": archive(_with(sizes=(0xFFFFFFFF, 0xFFFFFFFF))),
    "fewer records than counted": archive(
        [*checkpoint_entries()[:-1], Entry(name=b"archive/x", data=b"", header=1 << 30)]
    ),
    "a descriptor that is missing": archive(_with(descriptor=b"")),
    "another disk": archive(checkpoint_entries(), disks=7),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ambiguous")


def test_the_archive_that_all_others_are_made_of_is_sound(directory: Path) -> None:
    data = archive(checkpoint_entries())
    inspection = inspect_bytes(directory, data)
    assert inspection.is_valid
    assert not inspection.findings
    assert torch.load(io.BytesIO(data))["state_dict"]["w"].tolist() == [0.0] * 4
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_readers_may_see_differently_is_called_ambiguous(name: str, directory: Path) -> None:
    inspection = inspect_bytes(directory, AMBIGUOUS[name])
    assert codes(inspection) == {"archive.ambiguous"}, inspection.findings
    assert not inspection.is_valid


@pytest.mark.parametrize("name", MALFORMED)
def test_what_contradicts_itself_is_called_malformed(name: str, directory: Path) -> None:
    inspection = inspect_bytes(directory, MALFORMED[name])
    assert codes(inspection) == {"archive.malformed"}, inspection.findings


@pytest.mark.parametrize(
    "descriptor",
    [
        pytest.param(struct.pack("<4s3I", b"PK\x07\x08", LIE, 16, 16), id="checksum"),
        pytest.param(struct.pack("<4s3I", b"PK\x07\x08", zlib.crc32(bytes(16)), LIE, LIE), id="sizes"),
        pytest.param(struct.pack("<4s3I", b"PK\x09\x09", zlib.crc32(bytes(16)), 16, 16), id="signature"),
    ],
)
def test_a_descriptor_that_lies_to_streaming_readers_is_found_when_every_byte_is_read(
    descriptor: bytes, directory: Path
) -> None:
    path = directory / "descriptor.ckpt"
    path.write_bytes(archive(_with(descriptor=descriptor)))
    assert inspect_checkpoint(path).is_valid  # torch reads the directory only
    assert codes(inspect_checkpoint(path, Level.CHECKSUM)) == {"archive.malformed"}


def test_torch_and_zipfile_do_see_different_contents(directory: Path) -> None:
    """Why it matters: of two equal names zipfile takes the last, torch the one that a binary search meets."""
    other = Entry(name=DATA, data=b"\x80\x02}X\x05\x00\x00\x00epochK\x07s.")
    differ = 0
    for at in range(6):
        entries = checkpoint_entries()
        entries.insert(at, other)
        data = archive(entries)
        with zipfile.ZipFile(io.BytesIO(data)) as seen:
            differ += torch.load(io.BytesIO(data)) != torch.load(io.BytesIO(_only(seen.read("archive/data.pkl"))))
        assert codes(inspect_bytes(directory, data)) == {"archive.ambiguous"}
    assert differ


def _only(pickled: bytes) -> bytes:
    return archive(checkpoint_entries(pickle=Entry(name=DATA, data=pickled)))


def test_torch_takes_a_name_in_other_letters_for_the_same(directory: Path) -> None:
    data = archive([Entry(name=b"archive/DATA.PKL", data=b"\x80\x02}X\x05\x00\x00\x00epochK\x07s."),
                    *checkpoint_entries()[1:]])  # fmt: skip
    assert torch.load(io.BytesIO(data)) == {"epoch": 7}
    with zipfile.ZipFile(io.BytesIO(data)) as seen, pytest.raises(KeyError):
        seen.read("archive/data.pkl")
    assert codes(inspect_bytes(directory, data)) == {"format.unknown"}


def test_a_tar_archive_that_is_also_a_zip_archive_is_ambiguous(directory: Path) -> None:
    """A tar header has room for a zip header in the name of its first member."""
    first = Entry(name=DATA, data=PICKLE)
    body = bytearray(archive([first, *checkpoint_entries()[1:]]))
    begin = body.index(PICKLE)
    padded = Entry(name=DATA, data=PICKLE, local_extra=b"FB" + struct.pack("<H", 600) + bytes(600))
    body = bytearray(archive([padded, *checkpoint_entries()[1:]]))
    assert begin < 512 < body.index(PICKLE)
    header = bytearray(body[:512])
    header[124:136] = b"00000000000\0"
    header[156:157] = b"0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    body[:512] = header
    with tarfile.open(fileobj=io.BytesIO(bytes(body))) as seen:
        assert seen.getmembers()
    assert torch.load(io.BytesIO(bytes(body)))["state_dict"]
    assert codes(inspect_bytes(directory, bytes(body))) == {"archive.ambiguous"}


PREFIXES = {
    "a program": b"\x7fELF\x02\x01\x01" + bytes(57),
    "a script": b'#!/bin/sh\nexec python3 "$0"\n',
    "a bare pickle": pickle.dumps({"epoch": 1}, 2),
    "a page": b"<html><body></body></html>\n",
}


@pytest.mark.parametrize("name", PREFIXES)
def test_a_zip_archive_behind_something_else_is_ambiguous(name: str, directory: Path) -> None:
    """zipfile, unzip and Python itself open it as an archive; torch.load sees what stands in front."""
    data = PREFIXES[name] + archive(checkpoint_entries(), zip64=False)
    assert zipfile.is_zipfile(io.BytesIO(data))
    inspection = inspect_bytes(directory, data)
    assert "archive.ambiguous" in codes(inspection), inspection.findings
    assert inspection.format is not Format.TORCH_ZIP
    assert not inspection.is_valid


def test_a_legacy_file_with_an_archive_behind_it_is_refused(directory: Path) -> None:
    legacy = saved({"state_dict": state_dict()}, _use_new_zipfile_serialization=False)
    data = legacy + archive(checkpoint_entries(), zip64=False)
    assert zipfile.is_zipfile(io.BytesIO(data))
    assert codes(inspect_bytes(directory, data)) == {"archive.trailing_data"}


def _never_ambiguous(inspection: Inspection) -> None:
    assert not codes(inspection) & {"archive.ambiguous", "archive.malformed"}, inspection.findings
    assert inspection.is_valid, inspection.findings


OLD_LAYOUTS = {
    "1.6": ("data.pkl", "data/0", "version"),
    "2.0": ("data.pkl", "byteorder", "data/0", "version"),
    "2.1": ("data.pkl", "byteorder", "data/0", "version", ".data/serialization_id"),
}


@pytest.mark.parametrize("version", OLD_LAYOUTS)
def test_the_layouts_of_older_versions_are_sound(version: str, directory: Path) -> None:
    records = {entry.name.removeprefix(b"archive/").decode(): entry for entry in checkpoint_entries()}
    data = archive([records[name] for name in OLD_LAYOUTS[version]])
    assert torch.load(io.BytesIO(data))["state_dict"]["w"].tolist() == [0.0] * 4
    _never_ambiguous(inspect_bytes(directory, data))


@pytest.mark.parametrize(
    "name",
    ["best.ckpt", "a b.ckpt", "epoch=3-val_loss=0.12.ckpt", "Model.CKPT", "noext", "..ckpt", "...ckpt", "a\nb.ckpt",
     "ünïcode.ckpt", "DATA.ckpt", "x" * 200 + ".ckpt"],
)  # fmt: skip
def test_whatever_the_file_is_called_when_torch_writes_it_it_is_sound(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save({"state_dict": state_dict(), "epoch": 1}, path)
    _never_ambiguous(inspect_checkpoint(path))


def test_empty_tensors_and_no_tensors_are_sound(directory: Path) -> None:
    for value in ({"state_dict": {"a": torch.empty(0), "b": torch.ones(2), "c": torch.empty(0, 3)}}, {}):
        assert not codes(inspect_bytes(directory, saved(value))) & {"archive.ambiguous", "archive.malformed"}


def test_torchscript_archives_are_sound(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, program in enumerate((torch.jit.script(net), torch.jit.trace(net, torch.ones(1, 2)))):
            path = tmp_path / f"{number}.pt"
            torch.jit.save(program, path, _extra_files={"notes/a.txt": b"hello", "b": b""})
            inspection = inspect_checkpoint(path)
            assert inspection.format is Format.TORCHSCRIPT
            assert not codes(inspection) & {"archive.ambiguous", "archive.malformed"}, inspection.findings


def test_archives_packed_again_by_other_tools_are_sound(tmp_path: Path) -> None:
    """With directories as records, Unix attributes and time stamps in extra fields, as `zip -r` writes them."""
    stamped = struct.pack("<2HBI", 0x5455, 5, 1, 1_700_000_000)
    entries = [
        Entry(name=b"archive/", attributes=(0o040755 << 16) | 0x10, made_by=0x031E, flags=0, extra=stamped,
              local_extra=stamped),
        *(
            Entry(name=entry.name, data=entry.data, attributes=0o100644 << 16, made_by=0x031E, flags=0, extra=stamped,
                  local_extra=stamped, local_sizes=(len(entry.data),) * 2, local_checksum=zlib.crc32(entry.data))
            for entry in checkpoint_entries()
        ),
    ]  # fmt: skip
    data = archive(entries, zip64=False, comment=b"packed by hand")
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    _never_ambiguous(inspect_bytes(tmp_path, data))


@pytest.mark.parametrize("signature", [b"PK\x07\x08", b""])
@pytest.mark.parametrize("layout", ["<3I", "<I2Q"])
def test_streamed_archives_with_descriptors_of_every_form_are_sound(
    signature: bytes, layout: str, directory: Path
) -> None:
    entries = [
        Entry(
            name=entry.name,
            data=entry.data,
            descriptor=signature + struct.pack(layout, zlib.crc32(entry.data), len(entry.data), len(entry.data)),
        )
        for entry in checkpoint_entries()
    ]
    path = directory / "streamed.ckpt"
    path.write_bytes(archive(entries))
    for level in (Level.STRUCTURE, Level.CHECKSUM):
        _never_ambiguous(inspect_checkpoint(path, level))


def test_a_descriptor_of_another_form_than_the_others_is_malformed(directory: Path) -> None:
    """Without its signature the last four bytes before it may be the record's own: where does the record begin?"""
    descriptor = struct.pack("<3I", zlib.crc32(bytes(16)), 16, 16)
    assert codes(inspect_bytes(directory, archive(_with(descriptor=descriptor)))) == {"archive.malformed"}


def test_many_small_records_and_few_large_ones_are_checked_alike(tmp_path: Path) -> None:
    """A lie in one of many records is found wherever the headers are read from: memory, one run, or one by one."""
    for count, size in ((4, 16), (3000, 64), (4000, 600), (40, 20_000), (12, 40_000)):
        storages = [Entry(name=b"archive/data/%d" % n, data=bytes(size)) for n in range(1, count)]
        path = tmp_path / "many.ckpt"
        path.write_bytes(archive(_and(*storages)))
        assert not codes(inspect_checkpoint(path))
        for at in (0, count // 2, count - 2):
            lying = list(storages)
            lying[at] = Entry(name=storages[at].name, data=bytes(size), local_name=b"archive/data/x%d" % at)
            path.write_bytes(archive(_and(*lying)))
            assert codes(inspect_checkpoint(path)) == {"archive.ambiguous"}, (count, at)
            lying[at] = Entry(name=storages[at].name, data=bytes(size), before=b"hidden")
            path.write_bytes(archive(_and(*lying)))
            assert codes(inspect_checkpoint(path)) == {"archive.malformed"}, (count, at)
        os.unlink(path)


def test_records_in_any_order_of_the_directory_are_found(tmp_path: Path) -> None:
    """The directory may list records in another order than they lie in."""
    data = archive(checkpoint_entries())
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x06\x06")
    pieces = data[begin:end].split(b"PK\x01\x02")[1:]
    shuffled = b"".join(b"PK\x01\x02" + piece for piece in reversed(pieces))
    inspection = inspect_bytes(tmp_path, data[:begin] + shuffled + data[end:])
    assert inspection.is_valid
    assert [tensor.shape for tensor in inspection.tensors] == [(4,)]


def test_a_signature_among_the_numbers_of_the_directory_is_no_entry(tmp_path: Path) -> None:
    """A checksum may by chance be the four bytes that begin an entry."""
    target = int.from_bytes(b"PK\x01\x02", "little")
    data = _bytes_of_checksum(target)
    assert zlib.crc32(data) == target
    path = tmp_path / "chance.ckpt"
    path.write_bytes(archive(_and(Entry(name=b"archive/data/1", data=data))))
    assert not codes(inspect_checkpoint(path, Level.CHECKSUM))


def _bytes_of_checksum(target: int) -> bytes:
    """Four bytes whose CRC-32 is `target`: the register is run backwards over its table."""
    table = [zlib.crc32(bytes([n])) ^ zlib.crc32(b"\0") for n in range(256)]
    by_top = {value >> 24: n for n, value in enumerate(table)}
    register, indices = target ^ 0xFFFFFFFF, []
    for _ in range(4):
        index = by_top[register >> 24]
        indices.append(index)
        register = ((register ^ table[index]) << 8) & 0xFFFFFFFF
    register, made = 0xFFFFFFFF, b""
    for index in reversed(indices):
        made += bytes([(register ^ index) & 0xFF])
        register = (register >> 8) ^ table[index]
    return made


def test_a_small_checkpoint_is_still_what_the_other_tests_damage(tmp_path: Path) -> None:
    _never_ambiguous(inspect_bytes(tmp_path, small_checkpoint()))
