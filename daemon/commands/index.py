"""ckptd index: rebuild the portable index of a tree, or verify that it says what the tree says."""

import argparse
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from ckptd.catalog.description import Description
from ckptd.catalog.entry import (
    Health,
    Identities,
    Record,
    checkpoint_id,
    make_record,
    metadata_source,
    rfc3339,
    shown_path,
)
from ckptd.catalog.experiment import sidecar_names
from ckptd.catalog.index import Experiment, Index, index_of, read_index, write_index
from ckptd.catalog.roots import Root
from ckptd.catalog.scan import Found, Scan, scan_tree

from ..settings import Settings
from . import output
from .describing import describe_all
from .exits import ENVIRONMENT, FINE, FOUND
from .flags import add_setting_flags, settings_from
from .targets import Target, directory_roots, opened, writing_in

_SETTINGS = ("roots", "suffixes", "workers", "worker_memory_mb", "worker_timeout_s", "config")


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
    """Verify: 1 if they differ. Both: 3 if a directory could not be looked at."""
    settings = settings_from(options)
    roots = directory_roots(options.paths or settings.roots)
    scans = [(root, _scan(root, settings)) for root in roots]
    if options.action == "verify":
        status = _verify(scans, as_json=options.json)
    else:
        with writing_in(roots):
            status = _rebuild(scans, settings, as_json=options.json)
    problems = [
        f"{os.fsdecode(root.join(path))}: cannot be looked at ({error.strerror})"
        for root, scan in scans
        for path, error in scan.unreachable.items()
    ]
    for problem in problems:
        print(f"ckptd: {output.printable(problem)}", file=sys.stderr)
    return ENVIRONMENT if problems else status


def _scan(root: Root, settings: Settings) -> Scan:
    with opened(root) as root_fd:
        return scan_tree(root, root_fd, suffixes=settings.suffixes)


# ---- rebuild ---------------------------------------------------------------------------------------------------


def _rebuild(scans: Sequence[tuple[Root, Scan]], settings: Settings, *, as_json: bool) -> int:
    written = []
    for root, scan in scans:
        if scan.unreachable:
            continue  # an index that leaves out what could not be listed would be read as a deletion
        records = _records(root, scan, settings)
        with opened(root) as root_fd:
            changed = write_index(root_fd, index_of(records, root_fd))
        written.append({"root": root.name, "checkpoints": len(records), "written": changed})
    if as_json:
        output.print_json({"indexes": written})
        return FINE
    rows = [(i["root"], i["checkpoints"], "written" if i["written"] else "unchanged") for i in written]
    output.print_table(("root", "checkpoints", "index"), rows, ("checkpoints",))
    return FINE


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
        ),
        metadata_source=metadata_source(description.sidecar),
        alias_of=alias_of,
    )


# ---- verify ----------------------------------------------------------------------------------------------------


def _verify(scans: Sequence[tuple[Root, Scan]], *, as_json: bool) -> int:
    differences = [difference for root, scan in scans for difference in _differences(root, scan)]
    if as_json:
        output.print_json({"differences": [difference._asdict() for difference in differences]})
    else:
        rows = [(d.kind, os.path.join(d.root, d.path), d.detail) for d in differences]
        if rows:
            output.print_table(("index", "path", "detail"), rows)
        print(
            f"{len(differences)} differences" if differences else "the index says what the tree says", file=sys.stderr
        )
    return FOUND if differences else FINE


def _differences(root: Root, scan: Scan) -> Iterator[Difference]:
    with opened(root) as root_fd:
        read = read_index(root_fd)
        index = read.index
        if index is None:
            yield Difference(
                "missing", root.name, ".checkpoint_index.json", f"{read.reason}; run `ckptd index rebuild`"
            )
            return
        there = {shown_path(found.path)[0]: found for found in scan.found}
        yield from _names(root, index, there)
        for name, experiment in index.checkpoints.items():
            yield from _experiment(root, root_fd, name, experiment, there)


def _names(root: Root, index: Index, there: dict[str, Found]) -> Iterator[Difference]:
    listed = set(index.paths())
    for path in sorted(there.keys() - listed):
        yield Difference("missing", root.name, path, "in the tree, not in the index")
    for path in sorted(listed - there.keys()):
        yield Difference("extra", root.name, path, "in the index, not in the tree")


def _experiment(
    root: Root, root_fd: int, name: str, experiment: Experiment, there: dict[str, Found]
) -> Iterator[Difference]:
    found = [there[path] for path in experiment.checkpoints if path in there]
    if not found:
        return
    newest = max(each.identities.file.mtime_ns for each in found)
    if not _same_time(experiment.last_modified, newest):
        detail = f"experiment {name!r} was modified at {rfc3339(newest)}, the index says {experiment.last_modified}"
        yield Difference("changed", root.name, shown_path(found[0].path)[0], detail)
    sidecars = {shown_path(path)[0] for each in found if each.link is None for path in _sidecars(root_fd, each.path)}
    listed = set(experiment.metadata_files)
    for path in sorted(sidecars - listed):
        yield Difference("missing", root.name, path, "metadata in the tree, not in the index")
    for path in sorted(listed - sidecars):
        yield Difference("extra", root.name, path, "metadata in the index, not in the tree")


def _sidecars(root_fd: int, path: bytes) -> Iterator[bytes]:
    for name in sidecar_names(path):
        try:
            mode = os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            yield name


def _same_time(indexed: str | float | None, modified_ns: int) -> bool:
    """To the millisecond, which is what the index keeps; older writers put seconds."""
    if isinstance(indexed, str):
        try:
            indexed = datetime.fromisoformat(indexed).timestamp()
        except ValueError:
            return False
    return indexed is not None and abs(indexed - modified_ns / 1e9) < 0.002
