"""build_catalog: the whole job as one library call, without a daemon: walk, describe, and write what is asked for."""

import contextlib
import functools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from ckptd.validators.architectures import load_table
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import Finding, finding
from ckptd.validators.inspection import Level, Seal
from ckptd.validators.reader import identity_of

from .describe import describe_opened, failed_description, sidecar_for
from .description import DescribeRequest, Description, OpenedFiles, RedactionRules, SidecarStatus
from .directories import checkpoint_directory
from .entry import (
    CheckpointEntry,
    CheckpointId,
    Health,
    Identities,
    Record,
    checkpoint_id,
    health_of,
    make_record,
    metadata_source,
    shown_path,
)
from .experiment import Companions, DirectFiles, find_companions
from .index import index_of, read_index, write_index
from .links import Link, resolve_link
from .opening import SCARCE, directory_identities, open_checkpoint, status_of_checkpoint
from .roots import DEFAULT_SUFFIXES, Root, is_checkpoint_name, resolve_roots
from .scan import scan_tree
from .sidecar import render, sidecar_path, write_sidecar

ATTEMPTS = 3
"""Looks at a file that changes while it is read, before it is called `writing`."""

Describe = Callable[[DescribeRequest, OpenedFiles], Description]
Progress = Callable[[int, int | None], None]
"""(checkpoints described, how many there are or None while they are counted)."""


class CatalogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. By default everything is read anew and nothing is written."""

    roots: tuple[str, ...]
    suffixes: tuple[str, ...] = DEFAULT_SUFFIXES
    follow_links: tuple[str, ...] = ()
    """Directories outside the roots into which links may lead."""
    level: Level = Level.STRUCTURE
    trust_sidecars: bool = False
    """A sidecar of ours that matches size and time stands in for reading the checkpoint."""
    use_index: bool = False
    """Take the paths from `.checkpoint_index.json` where there is a good one. What it does not list is missed."""
    write_sidecars: bool = False
    """Write the missing ones, and replace ours that are stale. Others' are never touched."""
    long_sidecar_names: bool = True
    write_index: bool = False
    required_keys: tuple[str, ...] = ()
    """Keys or prefixes of keys (`model.encoder`) that every state dict must have; what lacks one is invalid."""
    redaction: RedactionRules | None = RedactionRules()
    """What nobody shall read in configs and hyper-parameters; None shows everything as it is."""
    architectures: str | None = None
    """A YAML file that extends the table by which models are recognised (see `validators/architectures.yaml`)."""
    abandoned_s: float = 60.0
    """An incomplete file that was not modified for so long is invalid; before, it is being written."""


class CatalogResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was built, newest first."""

    records: tuple[Record, ...] = ()
    fast_path_count: int = 0
    """Described from their sidecars."""
    slow_path_count: int = 0
    """Read."""
    catalog_build_time_seconds: float = 0.0
    unreachable: dict[str, str] = {}
    """Absolute path → why it could not be looked at. What lies beneath is not in the result, and may well exist."""
    skipped_links: int = 0
    warnings: tuple[str, ...] = ()
    sidecars_written: int = 0

    @property
    def entries(self) -> list[CheckpointEntry]:
        """The entries, as lists show them."""
        return [record.entry for record in self.records]

    @property
    def invalid_count(self) -> int:
        """Checkpoints that must not be used."""
        return sum(record.entry.health is Health.INVALID for record in self.records)


def build_catalog(
    options: CatalogOptions,
    *,
    describe: Describe | None = None,
    on_progress: Progress | None = None,
) -> CatalogResult:
    """Build the catalog of some trees.

    A bad file is an entry with findings, never an exception, and never hides a good one.

    Args:
        options: What to build.
        describe: The job for one checkpoint. The default parses in this process, which a hostile file can take down;
            the daemon's pool offers the same call in a sandboxed child (and knows its own `architectures`).
        on_progress: Called after each checkpoint.

    Raises:
        RootError: a root exists and is not a directory.
        TableError: `options.architectures` cannot be used.
    """
    began = time.perf_counter()
    if describe is None:
        describe = functools.partial(describe_opened, architectures=load_table(options.architectures))
    roots, warnings = resolve_roots(options.roots)
    build = _Build(options, roots, describe, on_progress)
    build.warnings += warnings
    for root in roots:
        build.add(root)
    records = sorted(build.records, key=lambda record: (-record.modified_ns, record.entry.id))
    return CatalogResult(
        records=tuple(records),
        fast_path_count=build.fast,
        slow_path_count=build.slow,
        catalog_build_time_seconds=time.perf_counter() - began,
        unreachable=build.unreachable,
        skipped_links=build.skipped_links,
        warnings=tuple(build.warnings),
        sidecars_written=build.written,
    )


class _Target(msgspec.Struct, frozen=True):
    """One path to describe."""

    root: Root
    root_fd: int
    path: bytes
    link: Link | None = None
    identities: Identities | None = None


class _Build:
    """The state of one build."""

    def __init__(
        self, options: CatalogOptions, roots: list[Root], describe: Describe, on_progress: Progress | None
    ) -> None:
        self.records: list[Record] = []
        self.fast = self.slow = self.written = self.skipped_links = 0
        self.unreachable: dict[str, str] = {}
        self.warnings: list[str] = []
        self._options = options
        self._roots = roots
        self._allowed = [os.path.realpath(os.fsencode(path)) for path in options.follow_links]
        self._describe = describe
        self._on_progress = on_progress

    def add(self, root: Root) -> None:
        """Everything in one root."""
        try:
            root_fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._note_unreachable(root.path, error)
            return
        try:
            records = [record for target in self._targets(root, root_fd) if (record := self._record(target))]
            self.records += records
            if self._options.write_index:
                self._write_index(root, root_fd, records)
        finally:
            os.close(root_fd)

    # ---- which -----------------------------------------------------------------------------------------

    def _targets(self, root: Root, root_fd: int) -> Iterable[_Target]:
        targets = list(self._from_index(root, root_fd) if self._options.use_index else self._scanned(root, root_fd))
        for done, target in enumerate(targets):
            yield target
            if self._on_progress is not None:
                self._on_progress(len(self.records) + done + 1, None if len(self._roots) > 1 else len(targets))

    def _scanned(self, root: Root, root_fd: int) -> list[_Target]:
        scan = scan_tree(
            root,
            root_fd,
            suffixes=self._options.suffixes,
            roots=self._roots,
            follow_links=self._allowed,
        )
        for path, error in scan.unreachable.items():
            self._note_unreachable(root.join(path), error)
        self.skipped_links += scan.skipped_links
        for path, what in scan.odd.items():
            self.warnings.append(f"{shown_path(root.join(path))[0]} has a checkpoint's name but is {what}")
        return [_Target(root, root_fd, found.path, found.link, found.identities) for found in scan.found]

    def _from_index(self, root: Root, root_fd: int) -> list[_Target]:
        read = read_index(root_fd)
        if read.index is None:
            self.warnings.append(f"{root.name}: {read.reason}; the tree is walked instead")
            return self._scanned(root, root_fd)
        targets = []
        for text in dict.fromkeys(read.index.paths()):
            path = os.fsencode(text)
            # The file is anybody's: nothing that leads out of the root is even looked at.
            beneath = path and not path.startswith(b"/") and b".." not in path.split(b"/") and b"\0" not in path
            if not beneath or not self._may_be_listed(root, path):
                self.warnings.append(f"{root.name}: the index names {text!r}, which is no checkpoint's path here")
            elif (target := self._indexed(root, root_fd, path)) is not None:
                targets.append(target)
        return targets

    def _may_be_listed(self, root: Root, path: bytes) -> bool:
        """Whether a path has a checkpoint's name, or is a directory that is one; a link to such a one included."""
        if is_checkpoint_name(os.path.basename(path), self._options.suffixes):
            return True
        return checkpoint_directory(os.path.realpath(root.join(path))) is not None

    def _indexed(self, root: Root, root_fd: int, path: bytes) -> _Target | None:
        try:
            if not os.path.islink(root.join(path)):
                return _Target(root, root_fd, path)
            link = resolve_link(root.join(path), self._inside(), self._allowed)
        except OSError:
            return _Target(root, root_fd, path, Link(None, None))
        self.skipped_links += link is None
        return None if link is None else _Target(root, root_fd, path, link)

    def _inside(self) -> list[bytes]:
        return [root.path for root in self._roots]

    # ---- one -------------------------------------------------------------------------------------------

    def _record(self, target: _Target) -> Record | None:
        try:
            with self._place(target) as (base_fd, path):
                return self._looked_at(target, base_fd, path)
        except FileNotFoundError:
            return None if target.link is None else self._failed(target, _dangling())
        except IsADirectoryError:  # it ceased to be a checkpoint
            return None
        except (OSError, Unreadable) as error:
            reason = error.strerror if isinstance(error, OSError) else error.message
            if error.errno in SCARCE:  # nothing was seen of the file, nor of what lies beside it
                self.unreachable[shown_path(target.root.join(target.path))[0]] = reason or str(error)
                return None
            return self._failed(target, finding("file.unreadable", f"the file cannot be read: {reason}"))

    @contextlib.contextmanager
    def _place(self, target: _Target) -> Iterator[tuple[int, bytes]]:
        """Where the bytes are: beneath the root, or beneath the directory that a link leads into."""
        link = target.link
        if link is not None and link.target is None:
            raise FileNotFoundError
        if link is None and self._allowed:
            # Beneath a directory link that was followed.
            link = resolve_link(target.root.join(target.path), self._inside(), self._allowed)
        if link is None or link.base is None or link.target is None or link.base == target.root.path:
            yield target.root_fd, target.path if link is None or link.target is None else link.target
            return
        base_fd = os.open(link.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield base_fd, link.target
        finally:
            os.close(base_fd)

    def _looked_at(self, target: _Target, base_fd: int, path: bytes) -> Record:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(Changed):
                return self._look_once(target, base_fd, path)
        return self._unsettled(target, base_fd, path)

    def _look_once(self, target: _Target, base_fd: int, path: bytes) -> Record:
        request, files, identities = open_checkpoint(base_fd, path, _companions(base_fd, path))
        try:
            description = self._describe(self._named(target, request), files)
            return self._take(target, description, self._with_link(target, identities), os.fstat(files.checkpoint))
        finally:
            for fd in files.all():
                os.close(fd)

    def _named(self, target: _Target, request: DescribeRequest) -> DescribeRequest:
        return msgspec.structs.replace(
            request,
            checkpoint_path=shown_path(target.root.join(target.path))[0],
            relative_path=target.path,
            level=self._options.level,
            trust_sidecar=self._options.trust_sidecars,
            required_keys=self._options.required_keys,
            redaction=self._options.redaction,
        )

    def _with_link(self, target: _Target, identities: Identities) -> Identities:
        if target.link is None:
            return identities
        own = os.stat(target.path, dir_fd=target.root_fd, follow_symlinks=False)
        return msgspec.structs.replace(identities, link=identity_of(own))

    def _take(
        self, target: _Target, description: Description, identities: Identities, status: os.stat_result
    ) -> Record:
        if description.inspection.level is Level.NONE and description.inspection.is_valid:
            self.fast += 1
        else:
            self.slow += 1
        age_s = time.time() - identities.file.mtime_ns / 1e9
        health = health_of(description, age_s=age_s, abandoned_s=self._options.abandoned_s)
        if self._options.write_sidecars and health is Health.VALID and target.link is None:
            description, identities = self._write_sidecar(target, description, identities, status)
        return self._made(target, description, health, identities)

    def _unsettled(self, target: _Target, base_fd: int, path: bytes) -> Record:
        """A checkpoint that changes faster than it can be read."""
        self.slow += 1
        status, identity = status_of_checkpoint(base_fd, path)
        is_directory = stat.S_ISDIR(status.st_mode)
        identities = self._with_link(
            target, directory_identities(base_fd, path) if is_directory else Identities(identity)
        )
        problem = finding(
            "shards.incomplete" if is_directory else "archive.incomplete",
            f"the {'directory' if is_directory else 'file'} is being written: it changed each time it was read",
        )
        request = DescribeRequest(
            checkpoint_path=shown_path(target.root.join(target.path))[0], relative_path=target.path
        )
        description = failed_description(request, identities.file, problem, seal=Seal.OPEN)
        return self._made(target, description, Health.WRITING, identities)

    def _failed(self, target: _Target, problem: Finding) -> Record | None:
        try:
            own = os.stat(target.path, dir_fd=target.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note_unreachable(target.root.join(target.path), error)
            return None
        self.slow += 1
        link = identity_of(own) if target.link is not None else None
        identities = target.identities or Identities(identity_of(own), link=link)
        request = DescribeRequest(
            checkpoint_path=shown_path(target.root.join(target.path))[0], relative_path=target.path
        )
        description = failed_description(request, identities.file, problem)
        return self._made(target, description, Health.INVALID, identities)

    def _made(self, target: _Target, description: Description, health: Health, identities: Identities) -> Record:
        return make_record(
            target.root,
            target.path,
            description,
            health,
            identities=identities,
            metadata_source=metadata_source(description.sidecar),
            alias_of=self._alias_of(target.link, identities),
        )

    def _alias_of(self, link: Link | None, identities: Identities) -> CheckpointId | None:
        if link is None or link.target is None or link.base not in self._inside():
            return None
        named = is_checkpoint_name(os.path.basename(link.target), self._options.suffixes)
        listed = named or identities.shards is not None
        return checkpoint_id(Root(link.base).name, link.target) if listed else None

    # ---- writing ---------------------------------------------------------------------------------------

    def _write_sidecar(
        self, target: _Target, description: Description, identities: Identities, status: os.stat_result
    ) -> tuple[Description, Identities]:
        """Write what is missing. A tree that cannot be written to is a warning and nothing else."""
        if description.sidecar not in (SidecarStatus.NONE, SidecarStatus.STALE_OURS):
            return description, identities
        path = sidecar_path(target.path, long_name=self._options.long_sidecar_names)
        data = render(sidecar_for(description), description.user)
        stale = description.sidecar is SidecarStatus.STALE_OURS
        try:
            written = write_sidecar(target.root_fd, path, data, like=status, replace_ours=stale)
        except OSError as error:
            shown = shown_path(target.root.join(path))[0]
            self.warnings.append(f"{shown} was not written: {error.strerror}")
            return description, identities
        self.written += 1
        kept = tuple(f for f in description.findings if f.code not in ("metadata.missing", "metadata.stale"))
        return (
            msgspec.structs.replace(description, sidecar=SidecarStatus.OURS, findings=kept),
            msgspec.structs.replace(identities, sidecars=(written,)),
        )

    def _write_index(self, root: Root, root_fd: int, records: list[Record]) -> None:
        try:
            write_index(root_fd, index_of(records, root_fd))
        except OSError as error:
            self.warnings.append(f"the index of {root.name} was not written: {error.strerror}")

    def _note_unreachable(self, path: bytes, error: OSError) -> None:
        self.unreachable[shown_path(path)[0]] = error.strerror or str(error)


def _companions(base_fd: int, path: bytes) -> Companions:
    """What lies around a checkpoint; nothing where that cannot be told: it must not hide the checkpoint.

    Raises:
        OSError: no descriptor is free, or no memory: that says nothing of what lies there.
    """
    try:
        return find_companions(DirectFiles(base_fd), path)
    except OSError as error:
        if error.errno in SCARCE:
            raise
        return Companions()


def _dangling() -> Finding:
    return finding("link.dangling", "the link leads nowhere: its target does not exist")
