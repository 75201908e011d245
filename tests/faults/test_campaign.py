"""The fault campaign: what changes a checkpoint is found, what is intact is never called corrupt.

The oracle is loading itself: a fault matters if the real loader then gives other values, or none (`judging`).
"""

import io
import json
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence

import pytest
import torch

from ckptd.validators import Inspection, inspect_checkpoint
from tests.daemon.command_line import ckptd
from tests.faults.campaign import FLIPS, TRUNCATED, Fault, Plan, find_regions, generate, put, sample
from tests.faults.intact import intact_subjects
from tests.faults.judging import OURS, Campaign, Judged, run_campaign
from tests.faults.loading import Job, Reader, read_all
from tests.faults.subjects import FILE, Subject, file_subject, saved_bytes, subjects, without_checksums

SEED = 20260101
STRUCTURAL = frozenset({FLIPS["directory"], FLIPS["local"], FLIPS["locator"], FLIPS["end"], TRUNCATED})
"""Faults of a zip archive that its structure shows, with checksums or without."""


def names_of(judged: Sequence[Judged]) -> list[str]:
    """What a failing test shows."""
    return [f"{each.fault.name} ({each.answers[Reader.LOAD].what[:80]})" for each in judged]


def check_claims(campaign: Campaign) -> None:
    """Everything that is claimed of validation, whatever the number of faults."""
    crashed = [each for each in campaign.judged for reader in OURS if _has_no_answer(each, reader)]
    assert not names_of(crashed), "every fault ends in an answer"
    matters = [each for each in campaign.judged if each.matters]
    missed = [each for each in matters if each.fault.is_covered and not each.found_by(Reader.CHECKSUM)]
    assert not names_of(missed), "where there are checksums, what matters is found"
    cut = [each for each in matters if each.fault.kind == TRUNCATED and not each.found_by(Reader.STRUCTURE)]
    assert not names_of(cut), "every truncation is found by structure"
    seen_twice = [
        each for each in campaign.judged if not each.found_by(Reader.CHECKSUM) and not _differs(each, campaign)
    ]
    assert not names_of(seen_twice), "a second look finds by its digest whatever the first one could not"
    alarms = [each.subject.name for each in campaign.intact for reader in OURS if each.alarms(reader)]
    assert not alarms, "what is intact is not called corrupt"


def _has_no_answer(judged: Judged, reader: Reader) -> bool:
    answer = judged.answers[reader]
    return answer.died or (answer.complained and not answer.codes)


def _differs(judged: Judged, campaign: Campaign) -> bool:
    intact = next(each for each in campaign.intact if each.subject.name == judged.fault.subject.name)
    digest = judged.answers[Reader.CHECKSUM].digest
    return digest is not None and digest != intact.answers[Reader.CHECKSUM].digest


# ---- the campaign ----------------------------------------------------------------------------------------------------


def test_a_sample_of_all_faults_in_all_formats_is_found(tmp_path: pathlib.Path) -> None:
    intact = list(subjects())
    faults = sample(generate(intact, Plan.of("sample"), SEED), 110, SEED)
    assert {fault.subject.name for fault in faults} == {subject.name for subject in intact}
    assert set(FLIPS.values()) <= {fault.kind for fault in faults}
    campaign = run_campaign(intact, faults, tmp_path)
    assert sum(each.matters for each in campaign.judged) >= 60, "most of them matter, or the sample proves nothing"
    check_claims(campaign)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_thousand_faults_that_change_what_would_be_loaded_are_found_and_no_intact_file_is_called_corrupt(
    tmp_path: pathlib.Path,
) -> None:
    intact = list(intact_subjects())
    assert len(intact) >= 100
    faults = generate(subjects(), Plan.of("full"), SEED)
    assert len(faults) >= 1000
    campaign = run_campaign(intact, faults, tmp_path)
    unloadable = [each.subject.name for each in campaign.intact if each.answers[Reader.LOAD].complained]
    assert not unloadable, "an intact file is one that its own loader takes"
    assert sum(each.matters for each in campaign.judged) >= 700
    check_claims(campaign)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_command_says_the_same_of_the_whole_campaign_from_its_sandboxed_workers(tmp_path: pathlib.Path) -> None:
    intact = [subject for subject in subjects() if not subject.is_directory]
    faults = generate(intact, Plan.of("quick"), SEED + 1)
    campaign = run_campaign(intact, faults, tmp_path / "campaign")
    tree = tmp_path / "tree"
    for number, fault in enumerate(faults):
        path = put(tree / f"{number:05}", fault.subject, fault.files)
        path.rename(path.with_name("model.ckpt"))
    result = ckptd("validate", tree, "--level", "checksum", "--json", home=tmp_path)
    assert result.returncode == 1, result.stderr
    told = [each["is_valid"] for each in json.loads(result.stdout)["checkpoints"]]
    assert told == [not each.found_by(Reader.CHECKSUM) for each in campaign.judged]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("checksums", [True, False])
def test_of_all_single_bits_of_an_archive_none_that_matters_goes_unfound(
    tmp_path: pathlib.Path, checksums: bool
) -> None:
    """Without checksums: none of what frames the records; their contents then are what only a second look can tell."""
    subject = small_archive() if checksums else small_archive(without_checksums)
    data = subject.members[FILE]
    regions = find_regions(data)
    faults = [
        Fault(subject, kind_at(regions, position), f"bit {bit} of byte {position}", FILE, flipped(data, position, bit))
        for position in range(len(data))
        for bit in range(8)
    ]
    campaign = run_campaign([subject], faults, tmp_path)
    check_claims(campaign)
    framing = [each for each in campaign.judged if each.matters and each.fault.kind in STRUCTURAL]
    assert len(framing) > 2000
    assert not names_of([each for each in framing if not each.found_by(Reader.STRUCTURE)])


def small_archive(saving: Callable[[Callable[[], bytes]], bytes] = lambda make: make()) -> Subject:
    data = saving(lambda: saved_bytes({"state_dict": {"w": torch.arange(6.0)}, "epoch": 1}))
    return file_subject("small archive", "torch", data, checksums=saving is not without_checksums)


def kind_at(regions: dict[str, list[tuple[int, int]]], position: int) -> str:
    inside = (name for name, parts in regions.items() for begin, end in parts if begin <= position < end)
    return FLIPS.get(next(inside, ""), "what nobody reads")


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


# ---- what it found ---------------------------------------------------------------------------------------------------


def inspected(directory: pathlib.Path, data: bytes) -> Inspection:
    path = directory / "found.ckpt"
    path.write_bytes(data)
    return inspect_checkpoint(path)


def test_a_record_marked_as_a_directory_is_refused(tmp_path: pathlib.Path) -> None:
    """torch then reads nothing and returns whatever was in memory before."""
    data = small_archive().members[FILE]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.start_dir
    flagged = flipped(data, entry + 38, 4)  # external attributes, the directory bit of DOS
    inspection = inspected(tmp_path, flagged)
    assert [found.code for found in inspection.findings] == ["archive.ambiguous"]
    assert "data.pkl has contents but is marked as a directory" in (inspection.error_message or "")


def test_a_locator_that_counts_no_disks_is_refused_as_by_torch(tmp_path: pathlib.Path) -> None:
    data = small_archive().members[FILE]
    damaged = flipped(data, data.rfind(b"PK\6\7") + 16, 0)
    with pytest.raises(RuntimeError, match="multidisk"):
        torch.load(io.BytesIO(damaged), weights_only=True)
    assert not inspected(tmp_path, damaged).is_valid


@pytest.mark.parametrize("bit", [2, 3])
def test_a_record_that_is_taken_from_elsewhere_shows_without_any_checksum(tmp_path: pathlib.Path, bit: int) -> None:
    """The length of the extra field decides where a record begins; torch believes what the local header says."""
    data = small_archive(without_checksums).members[FILE]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        headers = {info.filename: info.header_offset for info in archive.infolist()}
    for name in ("archive/data/0", "archive/version", "archive/byteorder"):
        damaged = flipped(data, headers[name] + 28, bit)
        assert struct.unpack_from("<H", damaged, headers[name] + 28) != struct.unpack_from(
            "<H", data, headers[name] + 28
        )
        assert [found.severity for found in inspected(tmp_path, damaged).findings] == ["error"], name


# ---- the oracle ------------------------------------------------------------------------------------------------------


class _Exit:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        import os

        return os._exit, (3,)


def test_a_file_that_ends_the_process_which_loads_it_costs_no_other_file_its_answer(tmp_path: pathlib.Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "good.ckpt")
    with open(tmp_path / "bad.ckpt", "wb") as file:
        torch.save({"state_dict": _Exit()}, file, pickle_module=pickle)
    jobs = [Job(Reader.LOAD, "torch_unsafe", str(tmp_path / f"{name}.ckpt")) for name in ("good", "bad", "good")]
    first, second, third = read_all(jobs, tmp_path)
    assert (second.died, second.complained) == (True, True)
    assert first.what == third.what
    assert not first.complained


def test_the_oracle_tells_values_apart_bit_by_bit_and_equal_ones_not(tmp_path: pathlib.Path) -> None:
    values = [
        {"state_dict": {"w": torch.tensor([0.0, 1.0])}},
        {"state_dict": {"w": torch.tensor([-0.0, 1.0])}},
        {"state_dict": {"w": torch.tensor([0.0, 1.0]).to(torch.float64)}},
        {"state_dict": {"w": torch.tensor([[0.0, 1.0]])}},
        {"state_dict": {"v": torch.tensor([0.0, 1.0])}},
        {"state_dict": {"w": torch.tensor([0.0, 1.0], requires_grad=True)}},
        {"state_dict": {"w": torch.tensor([0.0, 1.0])}, "epoch": 1},
        {"state_dict": {"w": torch.tensor([0.0, 1.0])}, "epoch": True},
        {"state_dict": {"w": torch.tensor([0.0, 1.0])}},
    ]
    for number, value in enumerate(values):
        torch.save(value, tmp_path / f"{number}.ckpt")
    jobs = [Job(Reader.LOAD, "torch", str(tmp_path / f"{number}.ckpt")) for number in range(len(values))]
    digests = [answer.what for answer in read_all(jobs, tmp_path)]
    assert digests[0] == digests[-1]
    assert len(set(digests)) == len(values) - 1


def test_the_same_seed_gives_the_same_faults_and_another_one_others() -> None:
    """TorchScript aside, whose archives number the programs of one process."""
    first, again, other = (
        generate((each for each in subjects() if each.loader != "jit"), Plan.of("sample"), seed) for seed in (1, 1, 2)
    )
    assert [(fault.name, fault.data) for fault in first] == [(fault.name, fault.data) for fault in again]
    assert [fault.what for fault in first] != [fault.what for fault in other]
