"""One suite for every format: what is whole is described as torch loads it, all else is told for what it is."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptd.validators import Format, Level, Seal, inspect_checkpoint
from tests.validators.checkpoint_files import codes, inspect_bytes
from tests.validators.format_files import WRITERS, weights

FORMATS = sorted(WRITERS)
WITHOUT_CHECKSUMS = [kind for kind in FORMATS if kind is not Format.TORCH_ZIP]

pytestmark = pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_neither_sealed_nor_valid(kind: Format, tmp_path: Path) -> None:
    data = WRITERS[kind](weights())
    path = tmp_path / "cut.ckpt"
    path.write_bytes(data)
    for length in reversed(range(0, len(data), 1 if len(data) < 3000 else 3)):
        with open(path, "r+b") as file:
            file.truncate(length)
        inspection = inspect_checkpoint(path)
        assert not inspection.is_valid, length
        assert inspection.seal is not Seal.SEALED, length
        if length >= 16:
            assert inspection.seal is Seal.OPEN, (length, inspection.findings)
            assert codes(inspection) == {"archive.incomplete"}, length


@pytest.mark.parametrize("kind", FORMATS)
def test_a_growing_file_is_open_until_its_last_byte(kind: Format, tmp_path: Path) -> None:
    """Large enough that it is not read whole."""
    data = WRITERS[kind]({"w": torch.randn(300_000), "v": torch.randn(40, 1000)})
    path = tmp_path / "growing.ckpt"
    with open(path, "wb", buffering=0) as file:
        for begin in range(0, len(data), 100_003):
            if begin:
                assert inspect_checkpoint(path).seal is Seal.OPEN
            file.write(data[begin : begin + 100_003])
    assert inspect_checkpoint(path).is_valid


DAMAGE = """
import random, sys
from pathlib import Path
from tests.validators.checkpoint_files import inspect_bytes
path = Path(sys.argv[1])
data = path.read_bytes()
source = random.Random(5)

def _damaged(source, data):
    damaged = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5))):
        position, action = source.randrange(len(damaged)), source.randrange(5)
        if action == 0:
            damaged[position] ^= 1 << source.randrange(8)
        elif action == 1:
            damaged[position] = source.randrange(256)
        elif action == 2:
            del damaged[position : position + source.randrange(1, 40)]
        elif action == 3:
            damaged[position:position] = source.randbytes(source.randrange(1, 40))
        else:
            damaged[position : position + 32] = bytes(32)
    return bytes(damaged)

def inspect_mutant(path, data):
    inspect_bytes(path.parent, data)

mutants = [_damaged(source, data) for _ in range(800)]
for each in (data, data[:-1], mutants[0]):
    inspect_mutant(path, each)
before, events = set(sys.modules), set()
sys.addaudithook(lambda event, arguments: events.add(event))
for mutant in mutants:
    inspect_mutant(path, mutant)
events -= {"open", "builtins.id", "marshal.dumps"}  # all three are our own
events -= {"sys.excepthook"}  # CPython complains on stderr about a bytearray that it failed to allocate (BYTEARRAY8)
print(sorted(events), sorted(set(sys.modules) - before))
"""


FLIPS = """
import sys, msgspec
from ckptd.validators import Inspection, inspect_checkpoint
path = sys.argv[1]
data = open(path, "rb").read()
names = {info.name for info in inspect_checkpoint(path).tensors}
valid = 0
for position in range(len(data)):
    flipped = bytearray(data)
    flipped[position] ^= 1 << (position % 8)
    with open(path, "r+b") as file:
        file.write(flipped)
    inspection = inspect_checkpoint(path)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(inspection), type=Inspection) == inspection
    valid += inspection.is_valid
    assert not inspection.is_valid or len(inspection.tensors) <= len(names), position
assert 0 < valid < len(data), valid
print("done")
"""


def _limited(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run in a process with limits, as in the daemon: without checksums a damaged pickle may ask for gigabytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    command = [sys.executable, "-c", script, str(path)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=50, cwd=root)


@pytest.mark.parametrize("kind", WITHOUT_CHECKSUMS)
def test_damage_never_raises_nor_imports(kind: Format, tmp_path: Path) -> None:
    path = tmp_path / "mutant.ckpt"
    path.write_bytes(WRITERS[kind](weights()))
    done = _limited(DAMAGE, path)
    assert done.stdout == "[] []\n", (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize("kind", FORMATS)
def test_no_flipped_bit_raises_or_makes_an_answer_that_cannot_travel(kind: Format, tmp_path: Path) -> None:
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(WRITERS[kind]({"w": torch.ones(2), "b": torch.zeros(1)}))
    done = _limited(FLIPS, path)
    assert done.stdout == "done\n", done.stderr[-2000:]


@pytest.mark.parametrize("kind", FORMATS)
def test_two_saves_of_different_weights_have_different_archive_ids(kind: Format, tmp_path: Path) -> None:
    """With equal names, shapes and size: the next epoch over the last one."""
    ids = {inspect_bytes(tmp_path, WRITERS[kind]({"w": torch.randn(5000)})).archive_id for _ in range(3)}
    assert len(ids) == 3
    assert None not in ids


@pytest.mark.parametrize("kind", WITHOUT_CHECKSUMS)
def test_a_format_without_checksums_is_digested_and_not_called_verified(kind: Format, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    data = WRITERS[kind](weights())
    path.write_bytes(data)
    inspection = inspect_checkpoint(path, Level.CHECKSUM)
    assert codes(inspection) == {"archive.unverifiable"}
    assert inspection.is_valid
    assert inspection.level is Level.STRUCTURE
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert inspect_checkpoint(path, Level.CHECKSUM).digest != inspection.digest
