"""What the campaign found: for each fault whether it matters, and who noticed."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.faults.campaign import Fault, put
from tests.faults.loading import Answer, Job, Reader, read_all
from tests.faults.subjects import Subject

OURS = (Reader.STRUCTURE, Reader.CHECKSUM)
TORCH = (Reader.TORCH, Reader.TORCH_MMAP, Reader.TORCH_UNSAFE)
NOT_CORRUPT = frozenset({"state_dict.missing", "state_dict.required_keys", "weights.non_finite"})
"""Errors that say something else of a checkpoint than that it is damaged."""


class Judged(NamedTuple):
    """One fault, and what every reader made of it."""

    fault: Fault
    answers: dict[Reader, Answer]
    matters: bool
    """It loads as other values, or does not load."""

    def found_by(self, reader: Reader) -> bool:
        """Whether the reader complained."""
        return self.answers[reader].complained


class Intact(NamedTuple):
    """One intact checkpoint, and what every reader made of it."""

    subject: Subject
    answers: dict[Reader, Answer]

    def alarms(self, reader: Reader) -> bool:
        """Whether the reader called it damaged."""
        answer = self.answers[reader]
        return answer.complained and not (reader in OURS and answer.codes and NOT_CORRUPT.issuperset(answer.codes))


class Campaign(NamedTuple):
    """All of it."""

    intact: list[Intact]
    judged: list[Judged]


def run_campaign(
    subjects: Sequence[Subject], faults: Sequence[Fault], work: pathlib.Path, readers: Iterable[Reader] = OURS
) -> Campaign:
    """Write every checkpoint, intact and damaged, beneath `work`; have them read; compare."""
    order = [Reader.LOAD, *readers]
    jobs: list[Job] = []
    for number, subject in enumerate(subjects):
        path = put(work / f"intact{number:04}", subject, subject.members)
        jobs += [Job(reader, subject.loader, str(path)) for reader in order if reads(reader, subject)]
    for number, fault in enumerate(faults):
        path = put(work / f"fault{number:05}", fault.subject, fault.files)
        jobs += [Job(reader, fault.subject.loader, str(path)) for reader in order if reads(reader, fault.subject)]
    answers = iter(read_all(jobs, work))
    intact = [Intact(subject, {r: next(answers) for r in order if reads(r, subject)}) for subject in subjects]
    loaded = {each.subject.name: each.answers[Reader.LOAD] for each in intact}
    judged: list[Judged] = []
    for fault in faults:
        mine = {reader: next(answers) for reader in order if reads(reader, fault.subject)}
        load, original = mine[Reader.LOAD], loaded[fault.subject.name]
        assert not original.complained, f"{fault.subject.name} does not load: {original.what}"
        judged.append(Judged(fault, mine, load.complained or load.what != original.what))
    return Campaign(intact, judged)


def reads(reader: Reader, subject: Subject) -> bool:
    """Whether a reader reads this format at all."""
    if reader is Reader.LOAD or reader in OURS:
        return True
    if subject.is_directory:
        return False
    is_zip = subject.members[""].startswith(b"PK")
    if reader is Reader.TESTZIP:
        return is_zip
    if reader is Reader.PICKLESCAN:
        return subject.loader != "safetensors"
    if reader is Reader.TORCH_UNSAFE:
        return subject.loader in ("torch", "torch_unsafe")
    return subject.loader == "torch" and (is_zip or reader is Reader.TORCH)
