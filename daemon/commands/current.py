"""Is a checkpoint's sidecar current: told from its bytes alone, without a worker, so that a second run costs little."""

import contextlib

from ckptd.catalog.entry import rfc3339
from ckptd.catalog.experiment import sidecar_names
from ckptd.catalog.recorded import NANOSECONDS
from ckptd.catalog.roots import open_beneath
from ckptd.catalog.sidecar import recorded_state

from ..settings import Settings
from .targets import Target, opened

_LONGEST_BYTES = 1 << 20


def is_current(target: Target, settings: Settings) -> bool:
    """Whether the one sidecar of a file is what ckptd wrote about exactly this state of it.

    The same rule as the fast path of `describe_opened`; what it does not cover is described.
    """
    found = target.found
    if found is None or target.is_directory or len(found.identities.sidecars) != 1:
        return False
    if settings.required_at(target.absolute):
        return False  # a sidecar does not say which keys there are
    file = found.identities.file
    return _recorded(target) == (file.size, rfc3339(file.mtime_ns, NANOSECONDS))


def _recorded(target: Target) -> tuple[int, str] | None:
    with contextlib.suppress(OSError), opened(target.root) as root_fd:
        for name in sidecar_names(target.path):
            try:
                fd = open_beneath(root_fd, name)
            except FileNotFoundError:
                continue
            with open(fd, "rb", buffering=0) as file:
                return recorded_state(file.read(_LONGEST_BYTES))
    return None
