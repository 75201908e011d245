"""ckptd index: rebuild the portable index of a tree, or verify that it says what the tree says."""

import argparse
import errno
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckptd.catalog.description import Description
from ckptd.catalog.entry import (
    Health,
    Identities,
    Record,
    checkpoint_id,
    make_record,
    metadata_source,
)
from ckptd.catalog.index import INDEX_NAME, index_of, read_index, write_index
from ckptd.catalog.index_differences import compare_indexes
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import Found, Scan, scan_tree
from ckptd.catalog.sidecar import clean_leftovers
from ckptd.validators.text import counted

from ..settings import Settings
from . import output
from .describing import describe_all
from .exits import ENVIRONMENT, FINE, FOUND
from .flags import add_setting_flags, settings_from
from .targets import Target, directory_roots, opened, writing_in

_SETTINGS = ("roots", "suffixes", "workers", "worker_memory_mb", "worker_timeout_s", "config")


Scans = Sequence[tuple[Root, Scan]]

_NAME = os.fsdecode(INDEX_NAME)


class Difference(NamedTuple):
    """One thing that index and tree disagree about."""

    kind: str
    """`missing` from the index, `extra` in it, or `changed`."""
    root: str
    path: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Rebuild or verify, and where."""
    parser.usage = "ckptd index {rebuild,verify} [PATH ...] [--json] [settings]"
    parser.add_argument("action", choices=("rebuild", "verify"), help="write it anew, or compare it with the tree")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="roots: one index lies in each (default: outputs)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    add_setting_flags(parser, _SETTINGS)


def run(options: argparse.Namespace) -> int:
    """Verify: 1 if they differ. Both: 3 if a directory could not be looked at, or an index not written."""
    settings = settings_from(options)
    roots = directory_roots(options.paths or settings.roots)
    if options.action == "verify":
        return _verify([(root, _scan(root, settings)) for root in roots], settings, as_json=options.json)
    with writing_in(roots):
        return _rebuild([(root, _scan(root, settings)) for root in roots], settings, as_json=options.json)


def _scan(root: Root, settings: Settings) -> Scan:
    with opened(root) as root_fd:
        return scan_tree(root, root_fd, suffixes=settings.suffixes)


def _problems(scans: Scans) -> list[str]:
    return [
        f"{os.fsdecode(root.join(path))}: cannot be looked at ({error.strerror})"
        for root, scan in scans
        for path, error in scan.unreachable.items()
    ]


def _complain(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"ckptd: {output.printable(problem)}", file=sys.stderr)


# ---- rebuild ---------------------------------------------------------------------------------------------------


class _Written(NamedTuple):
    """What became of one index."""

    root: str
    checkpoints: int
    written: bool
    detail: str = ""


def _rebuild(scans: Scans, settings: Settings, *, as_json: bool) -> int:
    written: list[_Written] = []
    problems = _problems(scans)
    for root, scan in scans:
        if scan.unreachable:
            # An index that leaves out what could not be listed would be read as a deletion.
            problems.append(f"{root.name}: its index is left as it is, because not all of it could be looked at")
            continue
        try:
            written.append(_rebuild_one(root, scan, settings))
        except OSError as error:
            problems.append(f"{os.path.join(root.name, _NAME)}: cannot be written ({error.strerror or error})")
    if as_json:
        output.print_json({"indexes": [each._asdict() for each in written], "problems": problems})
    else:
        rows = [(i.root, i.checkpoints, "written" if i.written else "unchanged", i.detail) for i in written]
        output.print_table(("root", "checkpoints", "index", "detail"), rows, ("checkpoints",))
    _complain(problems)
    return ENVIRONMENT if problems else FINE


def _rebuild_one(root: Root, scan: Scan, settings: Settings) -> _Written:
    """Write one index, whole or not at all.

    Raises:
        OSError: the system refused, or the index there is a later ckptd's.
    """
    with opened(root) as root_fd:
        clean_leftovers(root_fd, b"")
        there = read_index(root_fd)
        if there.is_newer:
            raise OSError(errno.EEXIST, f"{there.reason}; use that ckptd, or delete the file first")
        records = _records(root, scan, settings)
        changed = write_index(root_fd, index_of(records, root_fd))
    replaced = f"replaced: {there.reason}" if there.index is None and there.is_there else ""
    return _Written(root.name, len(records), changed, replaced)


def _records(root: Root, scan: Scan, settings: Settings) -> list[Record]:
    found = {each.path: each for each in scan.found}
    records: list[Record] = []
    if found:
        with output.progress("describing", len(found)) as progress:
            in_order = iter(sorted(found))

            def done(_: Target, description: Description) -> None:
                records.append(_record(root, found[next(in_order)], description))
                progress.advance()

            targets = [_target(root, found[path]) for path in sorted(found)]
            describe_all(targets, done, settings, trust_sidecar=True)
    return records


def _target(root: Root, found: Found) -> Target:
    """Where to look; of a link to a directory that is the directory, whose own name says what it is."""
    is_directory = found.identities.shards is not None
    if is_directory and found.link is not None and found.link.target is not None:
        return Target(root, found.link.target, is_directory)
    return Target(root, found.path, is_directory)


def _record(root: Root, found: Found, description: Description) -> Record:
    link = found.link
    alias_of = None
    if link is not None and link.target is not None and link.base == root.path:
        alias_of = checkpoint_id(root.name, link.target)
    return make_record(
        root,
        found.path,
        description,
        Health.VALID if description.inspection.is_valid else Health.INVALID,
        identities=Identities(
            found.identities.file,
            description.sidecar_identities,
            description.config_identity,
            shards=found.identities.shards,
            records=found.identities.records,
            logs=found.identities.logs,
        ),
        metadata_source=metadata_source(description.sidecar),
        alias_of=alias_of,
    )


# ---- verify ----------------------------------------------------------------------------------------------------


def _verify(scans: Scans, settings: Settings, *, as_json: bool) -> int:
    differences = [difference for root, scan in scans for difference in _differences(root, scan, settings)]
    problems = _problems(scans)
    if as_json:
        output.print_json({"differences": [difference._asdict() for difference in differences], "problems": problems})
    else:
        rows = [(d.kind, os.path.join(d.root, d.path), d.detail) for d in differences]
        if rows:
            output.print_table(("index", "path", "detail"), rows)
        print(_verdict(differences), file=sys.stderr)
    _complain(problems)
    if problems:
        return ENVIRONMENT
    return FOUND if differences else FINE


def _verdict(differences: Sequence[Difference]) -> str:
    if not differences:
        return "the index says what the tree says"
    counts = Counter(difference.kind for difference in differences)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("missing", "extra", "changed") if counts[kind])
    return f"{counted(len(differences), 'difference')}: {told}; `ckptd index rebuild` writes it anew"


def _differences(root: Root, scan: Scan, settings: Settings) -> Iterator[Difference]:
    with opened(root) as root_fd:
        read = read_index(root_fd)
        if read.index is None:
            remedy = "use the ckptd that wrote it" if read.is_newer else "run `ckptd index rebuild`"
            yield Difference("changed" if read.is_there else "missing", root.name, _NAME, f"{read.reason}; {remedy}")
            return
        right = index_of(_records(root, scan, settings), root_fd)
    hidden = [root.join(path) for path in scan.unreachable]
    for difference in compare_indexes(read.index, right):
        # Nothing is known beneath what could not be listed.
        absolute = root.join(os.fsencode(difference.path))
        if not any(absolute == path or absolute.startswith(path.rstrip(b"/") + b"/") for path in hidden):
            yield Difference(difference.kind, root.name, difference.path, difference.detail)
