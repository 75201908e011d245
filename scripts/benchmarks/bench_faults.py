"""The fault campaign as a table: who notices damage that changes what would be loaded, who cries wolf, how fast."""

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the campaign is part of the tests

from tests.faults.campaign import Plan, generate
from tests.faults.intact import intact_subjects
from tests.faults.judging import Campaign, Judged, reads, run_campaign
from tests.faults.loading import Reader
from tests.faults.subjects import Subject, subjects

READERS = tuple(reader for reader in Reader if reader is not Reader.LOAD)
_HEADINGS = {
    Reader.TORCH: "`torch.load`",
    Reader.TORCH_MMAP: "`mmap=True`",
    Reader.TORCH_UNSAFE: "`weights_only=False`",
    Reader.TESTZIP: "`zipfile.testzip`",
}


def run(*, quick: bool, seed: int) -> None:
    """Print the tables in Markdown, as they stand in the README."""
    faults = generate(subjects(), Plan.of("quick" if quick else "full"), seed)
    intact = list(intact_subjects())
    with tempfile.TemporaryDirectory() as work:
        campaign = run_campaign(intact, faults, Path(work), READERS)
    matter = [each for each in campaign.judged if each.matters]
    print(
        f"{len(faults):,} damaged checkpoints, seed {seed}; {len(matter):,} of them load as other values, or not. "
        f"{len(intact)} intact ones.\n"
    )
    covered = [each for each in matter if each.fault.is_covered]
    print("Archives that carry checksums (torch zip, TorchScript, the shards of DCP, FSDP and DeepSpeed):\n")
    _print_table(covered, campaign, [], totals=True)
    bare = [each for each in matter if not each.fault.is_covered]
    print("\nFiles without checksums (safetensors, torch legacy, `set_crc32_options(False)`, `.metadata`, JSON):\n")
    second = ("second look", lambda each: each.found_by(Reader.CHECKSUM) or _differs(each, campaign))
    _print_table(bare, campaign, [second], totals=False)


def _print_table(
    judged: Sequence[Judged], campaign: Campaign, more: Sequence[tuple[str, Callable[[Judged], bool]]], *, totals: bool
) -> None:
    headings = [*(_HEADINGS.get(reader, str(reader)) for reader in READERS)]
    headings[2:2] = [name for name, _ in more]
    print(f"| fault | {' | '.join(headings)} |")
    print(f"|---{'|---:' * len(headings)}|")
    kinds = list(dict.fromkeys(each.fault.kind for each in judged))
    for kind in kinds:
        _print_row(kind, [each for each in judged if each.fault.kind == kind], more)
    _print_row("**all**", judged, more)
    if totals:
        alarms = [_alarms(reader, campaign) for reader in READERS]
        print(f"| *intact, called damaged* | {' | '.join(alarms)} |")
        print(f"| *median ms per file* | {' | '.join(_median_ms(reader, campaign) for reader in READERS)} |")


def _print_row(name: str, judged: Sequence[Judged], more: Sequence[tuple[str, Callable[[Judged], bool]]]) -> None:
    cells = [_found(judged, reader) for reader in READERS]
    cells[2:2] = [f"{sum(map(finds, judged))}/{len(judged)}" for _, finds in more]
    print(f"| {name} | {' | '.join(cells)} |")


def _found(judged: Sequence[Judged], reader: Reader) -> str:
    mine = [each for each in judged if reader in each.answers]
    return f"{sum(each.found_by(reader) for each in mine)}/{len(mine)}" if mine else "-"


def _alarms(reader: Reader, campaign: Campaign) -> str:
    mine = [each for each in campaign.intact if reader in each.answers]
    return f"{sum(each.alarms(reader) for each in mine)}/{len(mine)}"


def _median_ms(reader: Reader, campaign: Campaign) -> str:
    """Over intact checkpoints that are one torch zip file, which all of them read."""
    common = [each for each in campaign.intact if _is_common(each.subject)]
    return f"{statistics.median(each.answers[reader].time_ms for each in common):.2f}"


def _is_common(subject: Subject) -> bool:
    return all(reads(reader, subject) for reader in READERS)


def _differs(judged: Judged, campaign: Campaign) -> bool:
    intact = next(each for each in campaign.intact if each.subject.name == judged.fault.subject.name)
    digest = judged.answers[Reader.CHECKSUM].digest
    return digest is not None and digest != intact.answers[Reader.CHECKSUM].digest
