"""Naming a checkpoint on a command line: by id, the beginning of one, a path or its end, or the name that is shown."""

import os
import re

from ckptd.catalog.entry import CheckpointEntry

from ..client import CatalogClient
from . import output
from .exits import USAGE, CommandError

HOW = "an id or the beginning of one, a path or the end of one, or a display name"
_ID = re.compile(r"[a-z2-7]{16}")
_ID_BEGINNING = re.compile(r"[a-z2-7]{4,15}")
_AMBIGUOUS_SHOWN = 10


def find_checkpoint(client: CatalogClient, given: str) -> str:
    """The id of the checkpoint that a person means.

    A file of that name on this machine goes first, then ids, then the catalog's paths and display names; of several
    that fit, one whose whole path or name it is.

    Raises:
        CommandError: none fits, or several do; exit code 2.
        ClientError: the daemon cannot be reached or refuses.
    """
    if _ID.fullmatch(given) and not os.path.lexists(given):
        return given
    absolute = os.path.join(os.path.realpath(os.path.dirname(given) or "."), os.path.basename(given.rstrip("/")))
    fitting = _fitting(client, given, absolute)
    for exact in (
        [entry for entry in fitting if entry.checkpoint_path == absolute],
        [entry for entry in fitting if entry.path == _relative(given)],
        [entry for entry in fitting if entry.display_name == given],
        fitting,
    ):
        if len(exact) == 1:
            return exact[0].id
        if exact:
            raise _ambiguous(given, exact)
    raise CommandError(f"{output.printable(given)!r} is not in the catalog; `ckptd ls --all` lists what is", USAGE)


def _fitting(client: CatalogClient, given: str, absolute: str) -> list[CheckpointEntry]:
    end = f"/{_relative(given)}"
    may_be_id = _ID_BEGINNING.fullmatch(given) is not None

    def fits(entry: CheckpointEntry) -> bool:
        return (
            entry.checkpoint_path == absolute
            or f"/{entry.path}".endswith(end)
            or entry.display_name == given
            or (may_be_id and entry.id.startswith(given))
        )

    name = os.path.basename(given.rstrip("/"))
    if not may_be_id and name and '"' not in name and len(name) < 255:
        found = [entry for entry in client.iterate(q=f'"{name}"', include_invalid=True) if fits(entry)]
        if found:
            return found
    return [entry for entry in client.iterate(include_invalid=True) if fits(entry)]


def _relative(given: str) -> str:
    return given.removeprefix("./").rstrip("/")


def _ambiguous(given: str, entries: list[CheckpointEntry]) -> CommandError:
    shown = "".join(f"\n  {entry.id}  {output.printable(entry.path)}" for entry in entries[:_AMBIGUOUS_SHOWN])
    more = len(entries) - _AMBIGUOUS_SHOWN
    return CommandError(
        f"{output.printable(given)!r} fits {len(entries)} checkpoints; name one by more of its path, or by id:{shown}"
        + (f"\n  and {more} more" if more > 0 else ""),
        USAGE,
    )
