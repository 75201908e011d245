"""What the service says of its own health, as a pure function of what it knows."""

import msgspec

from ckptd.validators.text import counted

from .settings import Settings
from .status import CatalogStatus, RootStatus, Status

STALLED_S = 60.0
"""A sweep that is later than its schedule by this much is stalled."""


def judge_service(status: Status, settings: Settings, *, now: float, sweep_due_s: float) -> Status:
    """Return `status` with its one word and the reasons for it.

    Args:
        status: everything else about the service.
        settings: the limits.
        now: wall clock, epoch seconds.
        sweep_due_s: how old `complete_as_of` may be when all is well, by the sweep's own schedule.
    """
    fatal = _fatal(status)
    reasons = fatal + _late(status, now, sweep_due_s) + _lacking(status, settings)
    state = CatalogStatus.UNHEALTHY if fatal else CatalogStatus.DEGRADED if reasons else CatalogStatus.HEALTHY
    return msgspec.structs.replace(status, state=state, reasons=tuple(reasons))


def _fatal(status: Status) -> list[str]:
    if status.roots and not any(root.online for root in status.roots):
        return ["no root can be read: " + "; ".join(map(_why_offline, status.roots))]
    return []


def _why_offline(root: RootStatus) -> str:
    why = root.last_error or "missing"
    return why if why.startswith(root.path) else f"{root.path}: {why}"


def _late(status: Status, now: float, sweep_due_s: float) -> list[str]:
    reasons = []
    if status.complete_as_of is None:
        reasons.append("the first sweep has not ended yet: the list may be incomplete")
    elif now - status.complete_as_of > sweep_due_s + STALLED_S:
        reasons.append(f"the last complete sweep began {now - status.complete_as_of:.0f} s ago")
    for root in status.roots:
        if not root.online:
            reasons.append(f"root {root.path} is offline: {root.last_error or 'missing'}")
            continue
        if root.sweep_error is not None:
            reasons.append(f"the last sweep of root {root.path} proved nothing: {root.sweep_error}")
        if not root.watching:
            reasons.append(f"root {root.path} is not watched ({root.last_error or 'starting'}); sweeps find changes")
    return reasons


def _lacking(status: Status, settings: Settings) -> list[str]:
    reasons = []
    offline = status.by_health.get("offline", 0)
    if offline:
        reasons.append(
            f"{counted(offline, 'checkpoint')} {'is' if offline == 1 else 'are'} offline: the disk or directory "
            "cannot be read. If it is gone for good, run `ckptd rebuild --mode full`"
        )
    coverage = status.metadata_coverage
    if coverage < settings.coverage_degraded and not status.writing_sidecars:
        reasons.append(f"metadata coverage is {coverage:.0%}, below {settings.coverage_degraded:.0%}")
    if status.last_build_s is not None and status.last_build_s > settings.build_degraded_s:
        reasons.append(f"the last build took {status.last_build_s:.1f} s, more than {settings.build_degraded_s:g} s")
    if status.verification is not None and status.verification.problem is not None:
        reasons.append(f"checkpoints are not verified beyond their structure: {status.verification.problem}")
    if not status.state_durable:
        reasons.append("the state cannot be written: what is known will be gathered anew after a restart")
    return reasons
