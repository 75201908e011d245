"""Seeded damage to files of every format never raises, runs or hides anything, nor seals a file by luck."""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptd.catalog.description import DescribeRequest, OpenedFiles
from ckptd.daemon.workers import WorkerDied, finding_for
from ckptd.daemon.zygote_process import ZYGOTE_COMMAND
from ckptd.validators import Inspection, Safety, Severity, inspect_checkpoint
from ckptd.validators.checks.safety import ALLOWED
from tests.daemon.worker_pools import make_pool
from tests.faults.subjects import subjects, without_checksums
from tests.validators.checkpoint_files import saved, small_checkpoint
from tests.validators.fuzzing import KINDS, Mutants, parse_records
from tests.validators.hostile import checkpoint_around, name_opcode
from tests.validators.zip_files import Entry, archive

SEEDS = (1, 2, 3, 4)
MUTANTS_PER_SEED = 13_000
assert len(SEEDS) * MUTANTS_PER_SEED >= 50_000
ENDS = {signal.SIGSEGV, signal.SIGKILL, signal.SIGALRM, signal.SIGXCPU, signal.SIGBUS, signal.SIGABRT}
"""Of a child: a stack that overflows, memory or time that runs out. In the pool each of them is a finding."""
LARGEST_ORIGINAL = 40_000


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the mutants are made of: files of every format, those with checksums first by name, and directories."""
    directory = tmp_path_factory.mktemp("originals")
    files = {"crc plain": small_checkpoint(), "crc nothing": saved({})}
    for subject in subjects():
        if subject.is_directory:
            for name, data in subject.members.items():
                path = directory / "parts" / (subject.directory or subject.name) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        else:
            (data,) = subject.members.values()
            files[("crc " if subject.checksummed else "") + subject.name] = data
    small: dict[str, Any] = {"state_dict": {"w": torch.ones(3)}, "epoch": 1}
    files["legacy small"] = saved(small, _use_new_zipfile_serialization=False)
    files["unchecked small"] = without_checksums(lambda: saved(small))
    files["safetensors small"] = safetensors.torch.save(small["state_dict"], {"format": "pt"})
    for number, (name, data) in enumerate(files.items()):
        if len(data) <= LARGEST_ORIGINAL:
            (directory / f"{name} {number}.bin").write_bytes(data)
    return directory


def _campaign(directory: Path, seed: int, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.validators.fuzzing", directory, str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert outcome["count"] == count == sum(outcome["kinds"].values())
    assert all(outcome["kinds"][kind] > count // 100 for kind in KINDS)
    assert outcome["problems"] == {}
    return outcome


async def _ends_as_a_finding(directory: Path, mutants: Mutants, killed: dict[str, int]) -> None:
    """Each mutant that ended its child, alone, through the pool."""
    path = directory / "killer.ckpt"
    async with make_pool(memory_mb=512, timeout_s=5, command=ZYGOTE_COMMAND) as pool:
        for number in map(int, killed):
            path.write_bytes(mutants[number].data)
            descriptor = os.open(path, os.O_RDONLY)
            request = DescribeRequest(checkpoint_path=str(path), relative_path=os.fsencode(path.name))
            try:
                description = await pool.describe(request, OpenedFiles(checkpoint=descriptor, owner=os.geteuid()))
            except WorkerDied as death:
                assert finding_for(death).severity is Severity.ERROR  # noqa: PT017
            else:
                assert not description.inspection.is_valid
            finally:
                os.close(descriptor)


def test_damage_never_raises_runs_or_hides_anything(originals: Path) -> None:
    _campaign(originals, seed=0, count=2000)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_fifty_thousand_mutants_never_raise_run_or_hide_anything(seed: int, originals: Path) -> None:
    outcome = _campaign(originals, seed, MUTANTS_PER_SEED)
    assert set(outcome["killed"].values()) <= ENDS
    assert len(outcome["killed"]) < 20
    anyio.run(_ends_as_a_finding, originals, Mutants(originals, seed), outcome["killed"])


KILLING = """
import json, pathlib, sys
from tests.validators import fuzzing
from tests.validators.hostile import hostile_checkpoint

class Mutants(fuzzing.Mutants):
    def __getitem__(self, number):
        if number == 3:
            return fuzzing.Mutant("pickle", "pickle", hostile_checkpoint("nested_tuple_key"), checked=False)
        if number == 5:
            sound = self.originals[min(self.checksummed)]
            return fuzzing.Mutant(max(self.checksummed), "raw", sound, checked=True)
        return super().__getitem__(number)

fuzzing.Mutants = Mutants
print(json.dumps(fuzzing.run(pathlib.Path(sys.argv[1]), 0, 8)))
"""


def test_the_judge_of_the_fuzz_finds_the_mutant_that_kills_and_the_one_that_is_called_valid(originals: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLING, originals], capture_output=True, text=True, timeout=50, check=False
    )
    outcome = json.loads(done.stdout)
    assert outcome["count"] == 8
    assert outcome["killed"] == {"3": signal.SIGSEGV}
    assert list(outcome["problems"]) == ["5"]
    assert "contents differ" in outcome["problems"]["5"][-1]


UTF_16 = """
import sys
from ckptd.validators.formats.trainer import read_json
assert read_json(b'{"a": 1}') == {"a": 1}
before = set(sys.modules)
assert read_json(bytes.fromhex("007b007d")) is None  # {} in UTF-16
print(set(sys.modules) - before)
"""


def test_a_text_in_another_encoding_needs_no_codec() -> None:
    """Found by mutant 2340 of seed 1: what is imported behind the sandbox ends the child."""
    done = subprocess.run([sys.executable, "-c", UTF_16], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "set()\n", done.stderr


def inspect_mutant(path: str, data: bytes) -> Inspection:
    """Inspect `data`, and see that the answer survives the way to another process."""
    with open(path, "wb") as file:
        file.write(data)
    inspection = inspect_checkpoint(path)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(inspection), type=Inspection) == inspection
    return inspection


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"{", b"\x08\x07\x12"]))
def test_any_bytes_are_described_and_never_valid(tmp_path: Path, data: bytes, head: bytes) -> None:
    assert not inspect_mutant(os.fspath(tmp_path / "any.ckpt"), head + data).is_valid


END = struct.Struct("<4s4H2IH")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_no_false_end_record_is_taken_for_a_seal(tmp_path: Path, count: int, size: int, offset: int) -> None:
    data = small_checkpoint()
    body = data[: len(data) - END.size]
    inspection = inspect_mutant(
        os.fspath(tmp_path / "end.ckpt"), body + END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
    )
    original = END.unpack(data[-END.size :])
    assert inspection.is_valid == ((count, size, offset) in {original[4:7], (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)})


NAMES = st.sampled_from(
    [
        ("os", "system"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("builtins", "getattr"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("a", "B"),
    ]
)
SIMPLE = st.sampled_from([bytes([byte]) for byte in b"N)]}(tRb0\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94aesuQo2"])
VALUES = st.sampled_from([b"h\x00", b"h\x01", b"K\x01", b"X\x05\x00\x00\x00epoch", b"\x8c\x01x"])
OPCODES = st.one_of(SIMPLE, VALUES, NAMES.map(lambda name: name_opcode(*name)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPCODES, max_size=25))
def test_any_sequence_of_opcodes_is_safe_only_if_all_its_names_are_allowed(
    tmp_path: Path, opcodes: list[bytes]
) -> None:
    inspection = inspect_mutant(
        os.fspath(tmp_path / "any.ckpt"), checkpoint_around(b"\x80\x04" + b"".join(opcodes) + b".")
    )
    named = {".".join(opcode[1:-1].decode().split("\n")) for opcode in opcodes if opcode[:1] == b"c"}
    if inspection.safety is Safety.SAFE:
        assert named <= ALLOWED
    if "os.system" in named and not inspection.findings:
        raise AssertionError("a name was hidden")


ENTRIES = st.builds(
    Entry,
    name=st.sampled_from([b"archive/data.pkl", b"archive/data/0", b"archive/data/1", b"archive/version", b"x", b""]),
    data=st.sampled_from([b"", b"\x80\x02}.", b"\0" * 16, b"PK\x03\x04", b"3\n"]),
    flags=st.sampled_from([0x0808, 0x0008, 0, 1, 0xFFFF]),
    method=st.sampled_from([0, 0, 0, 8, 12]),
    local_sizes=st.sampled_from([(0, 0), (16, 16), (0xFFFFFFFF, 0xFFFFFFFF)]),
    extra=st.one_of(st.just(b""), st.binary(max_size=30)),
    local_extra=st.one_of(st.none(), st.binary(max_size=30)),
    comment=st.one_of(st.just(b""), st.binary(max_size=10)),
    attributes=st.sampled_from([0, 0x10, 0o120777 << 16]),
    header=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    before=st.sampled_from([b"", b"", b"hidden"]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ENTRIES, max_size=5), st.booleans(), st.binary(max_size=30))
def test_any_archive_that_is_accepted_says_the_same_to_everybody(
    tmp_path: Path, entries: list[Entry], zip64: bool, comment: bytes
) -> None:
    """Accepted: no error about the archive. Then its names differ, in any letters, and no byte is anybody's guess."""
    data = archive(entries, zip64=zip64, comment=comment)
    inspection = inspect_mutant(os.fspath(tmp_path / "any.ckpt"), data)
    if not any(found.code.startswith(("archive.", "format.")) for found in inspection.findings):
        records = parse_records(data)
        assert len({name.lower() for name in records}) == len(entries)
        assert all(entry.header is None or data[entry.header :].startswith(b"PK\x03\x04") for entry in entries)
        assert records == {entry.name: entry.data for entry in entries}
        assert {zlib.crc32(contents) for contents in records.values()} == {zlib.crc32(e.data) for e in entries}


SIDES = st.one_of(st.integers(-1, 9), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
HEADER_KEYS = st.sampled_from(["w", "v", "__metadata__", "\ud800", ""])
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "I8", "F4"]), st.none(), st.integers()),
        "shape": st.one_of(st.lists(SIDES, max_size=4), st.just([2]), st.none()),
        "data_offsets": st.one_of(st.just([0, 8]), st.lists(SIDES, max_size=3)),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["w", "v", "__metadata__", "\ud800", ""]), st.one_of(TENSORS, SIDES), max_size=3)
)
def test_any_header_is_described_or_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    inspection = inspect_mutant(os.fspath(tmp_path / "any.ckpt"), struct.pack("<Q", len(text)) + text + bytes(8))
    if inspection.is_valid:
        assert sum(tensor.nbytes for tensor in inspection.tensors) == 8
