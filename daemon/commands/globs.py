"""Globs: quoted patterns on a command line, expanded here as a shell would, `**` included."""

import glob
import os
from collections.abc import Iterable, Sequence

from ckptd.catalog.experiment import is_companion_name
from ckptd.catalog.roots import is_checkpoint_name

from .exits import USAGE, CommandError
from .targets import Target, Targets, find_targets


def find_matching(paths: Iterable[str], suffixes: Sequence[str]) -> Targets:
    """The checkpoints that files, directories and globs stand for, each once.

    What exists under its literal name is that, whatever its name would mean as a glob. A glob that ends in `*` or `**`
    stands for what a directory stands for: files with one of the suffixes. Of what another one matches, files that
    belong to a checkpoint are left out: sidecars, configs, the parts of a checkpoint that is a directory.

    Raises:
        CommandError: a path does not exist, or a glob matches no checkpoint; exit code 2.
    """
    named: list[str] = []
    matched: list[str] = []
    for path in paths:
        if glob.has_magic(path) and not os.path.lexists(path):
            matched += _expand(path, suffixes)
        else:
            named.append(path)
    targets = find_targets([*named, *dict.fromkeys(matched)], suffixes)
    by_path = {target.absolute: target for target in targets.found}
    only_matched = {os.path.realpath(os.fsencode(path)) for path in matched}
    found = [target for path, target in by_path.items() if path not in only_matched or not _is_part(path, by_path)]
    return Targets(found, targets.problems)


def _expand(pattern: str, suffixes: Sequence[str]) -> list[str]:
    # Links that lead nowhere are left out, as in a tree.
    matches = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.exists(path))
    if not matches:
        raise CommandError(f"nothing matches {pattern!r}; name a checkpoint, a directory or a glob", USAGE)
    anything = os.path.basename(pattern) in ("*", "**")
    kept = [path for path in matches if os.path.isdir(path) or _may_be_checkpoint(path, suffixes if anything else ())]
    if not kept:
        raise CommandError(f"{pattern!r} matches no checkpoint, only other files", USAGE)
    return kept


def _may_be_checkpoint(path: str, suffixes: Sequence[str]) -> bool:
    name = os.fsencode(os.path.basename(path))
    return is_checkpoint_name(name, suffixes) if suffixes else not is_companion_name(name)


def _is_part(path: bytes, checkpoints: dict[bytes, Target]) -> bool:
    """Whether it lies in a directory that is itself a checkpoint."""
    directory = os.path.dirname(path)
    while directory not in (b"/", b""):
        if directory in checkpoints:
            return True
        directory = os.path.dirname(directory)
    return False
