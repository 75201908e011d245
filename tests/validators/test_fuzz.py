"""Random damage, also under repaired checksums, never raises, never imports, and never makes a file sealed by luck."""

import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptd.validators import Inspection, inspect_checkpoint
from tests.validators.checkpoint_files import small_checkpoint
from tests.validators.hostile import KILLERS, checkpoint_around, hostile_pickles

CAMPAIGN = """
import random, sys
from tests.validators.test_fuzz import inspect_mutant, mutants
seed, count, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
inspect_mutant(path, next(mutants(random.Random(0), 1)))
damaged = list(mutants(random.Random(seed), count))
before = set(sys.modules)
events = set()
sys.addaudithook(lambda event, arguments: events.add(event))
for mutant in damaged:
    inspect_mutant(path, mutant)
events -= {"open", "builtins.id", "marshal.dumps", "fcntl.fcntl"}  # all of these are our own
events -= {"sys.excepthook"}  # CPython prints a SystemError of its own when BYTEARRAY8 runs out of data
print(sorted(events), sorted(set(sys.modules) - before))
"""


def mutants(source: random.Random, count: int) -> Iterator[bytes]:
    """`count` damaged archives: raw damage, or a damaged pickle inside a sound archive.

    Nothing starts from a doubling tuple: damage can make it a key, and then its hash outlasts us all (see `KILLERS`).
    """
    whole = small_checkpoint()
    apart = KILLERS | {"doubling_lists", "doubling_tuples_in_hyper_parameters"}
    pickles = [data for name, data in hostile_pickles().items() if name not in apart and len(data) < 5000]
    return (_mutant(source, whole, pickles) for _ in range(count))


def _mutant(source: random.Random, whole: bytes, pickles: list[bytes]) -> bytes:
    if source.random() < 0.5:
        return _damaged(source, whole)
    data = _damaged(source, source.choice(pickles) + (source.choice(pickles) if source.random() < 0.3 else b""))
    return checkpoint_around(data, {"data/0": b"\0" * 16})


def _damaged(source: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(damaged) + 1)
        match source.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del damaged[at : at + source.randint(1, 40)]
            case 2:
                damaged[at:at] = source.randbytes(source.randint(1, 12))
            case _:
                start = source.randrange(len(damaged) + 1)
                damaged[at : at + 8] = damaged[start : start + 8]
    return bytes(damaged)


def inspect_mutant(path: str, data: bytes) -> Inspection:
    """Inspect `data`, and see that the answer survives the way to another process."""
    with open(path, "wb") as file:
        file.write(data)
    inspection = inspect_checkpoint(path)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(inspection), type=Inspection) == inspection
    return inspection


def _campaign(tmp_path: Path, seed: int, count: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CAMPAIGN, str(seed), str(count), os.fspath(tmp_path / "mutant.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, preexec_fn=limit, check=False, cwd=root)
    assert done.stdout == "[] []\n", (done.returncode, done.stderr[-3000:])


def test_damage_never_raises_nor_imports(tmp_path: Path) -> None:
    _campaign(tmp_path, seed=1, count=1000)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_much_damage_never_raises_nor_imports(seed: int, tmp_path: Path) -> None:
    _campaign(tmp_path, seed, count=5_000)


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
