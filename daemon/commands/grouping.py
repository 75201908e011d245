"""Grouping: what was found in many checkpoints, by finding; the remedy is said once."""

from collections.abc import Iterable
from typing import NamedTuple

from ckptd.catalog.description import Description
from ckptd.validators.findings import Finding, Severity

from .targets import Target

_SEVERITIES = (Severity.ERROR, Severity.WARNING, Severity.INFO)


class Group(NamedTuple):
    """One finding code and every checkpoint that has it."""

    code: str
    severity: Severity
    remedy: str
    found: list[tuple[Target, Finding]]

    @property
    def checkpoints(self) -> int:
        """How many have it; one may have it several times, for several tensors."""
        return len({target for target, _ in self.found})


def group_findings(results: Iterable[tuple[Target, Description]]) -> list[Group]:
    """The findings of all results by code: errors first, within a severity the most frequent first."""
    groups: dict[str, Group] = {}
    for target, description in results:
        for finding in description.findings:
            fresh = Group(finding.code, finding.severity, finding.remedy, [])
            groups.setdefault(finding.code, fresh).found.append((target, finding))
    return sorted(groups.values(), key=lambda g: (_SEVERITIES.index(g.severity), -g.checkpoints, g.code))
