"""Tree: one root, kept current; the watcher's hints and the sweeps become paths to look at."""

import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog

from ckptd.catalog.directories import directories_above
from ckptd.catalog.entry import Record
from ckptd.catalog.experiment import DirectFiles, checkpoints_of_config, checkpoints_of_sidecar, scope_of
from ckptd.catalog.opening import SCARCE
from ckptd.catalog.roots import Root, is_checkpoint_name
from ckptd.catalog.sidecar import clean_leftovers, remove_sidecar
from ckptd.catalog.store import Batch, Catalog, Tombstone, id_of
from ckptd.validators.formats.sharded import DEPTH, is_member_name

from .completeness import Completeness, SweepSchedule, Ticket
from .hints import Hints, outermost
from .key import Key
from .mounts import MountTable
from .moves import Mark
from .pipeline import Pipeline
from .setting_types import Sidecars
from .settings import Settings
from .status import RootStatus
from .sweep import SweepReport, sweep_root, sweep_unasked, sweep_unopened
from .watcher import WatcherState, watch_root


class _Waiter(NamedTuple):
    """Somebody waits for a sweep that begins from now on."""

    full: bool
    done: anyio.Event


class _Proof(NamedTuple):
    """A sweep that ended, and those who wait until everything that it found is published."""

    ticket: Ticket[Key]
    waiters: list[_Waiter]


class Tree:
    """Keeps one root current. `run` owns its watch and its sweeps."""

    def __init__(
        self,
        root: Root,
        *,
        catalog: Catalog,
        pipeline: Pipeline,
        completeness: Completeness[Key],
        mounts: MountTable,
        save_mounts: Callable[[Root, MountTable], Awaitable[None]],
        may_write: Callable[[Root], bool],
        on_swept: Callable[[SweepReport], None],
        roots: Sequence[Root],
        allowed_targets: Sequence[bytes],
        settings: Settings,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Args:
        save_mounts: makes what a sweep learned of the mounts durable.
        may_write: whether left-over temporary files may be removed there; called in a thread.
        on_swept: told of each sweep of the whole root.
        roots: all of them; links may lead from one into another.
        allowed_targets: directories outside the roots into which links may lead.
        """
        self.root = root
        self.watching = WatcherState()
        self.online = False
        self.skipped_links = 0
        self.odd: Mapping[bytes, str] = {}
        self.last_error: str | None = None
        self.sweep_error: str | None = None
        self.last_sweep_s: float | None = None
        self.sweep_started_at: float | None = None
        self._catalog = catalog
        self._pipeline = pipeline
        self._completeness = completeness
        self._mounts = mounts
        self._save_mounts = save_mounts
        self._may_write = may_write
        self._on_swept = on_swept
        self._roots = roots
        self._allowed_targets = allowed_targets
        self._settings = settings
        self._log = log
        self._schedule = SweepSchedule(min_s=settings.sweep_min_s, cpu=settings.sweep_cpu)
        self._waiters: list[_Waiter] = []
        self._proofs: list[_Proof] = []
        self._orphans: dict[bytes, float] = {}
        """Sidecars without a checkpoint, and when they were first seen so; monotonic seconds."""
        self._subtrees: set[bytes] = set()
        self._wake_sweep = anyio.Event()
        self._wake_scan = anyio.Event()
        # Threads of its own: a root on a hanging disk must not use up those of the others.
        self._sweep_thread = anyio.CapacityLimiter(1)
        self._scan_thread = anyio.CapacityLimiter(1)
        self._claimed = {record.entry.id: record.relative_path for record in catalog if self._is_directory(record)}
        """Directories of this root that are listed as checkpoints; not links to such."""
        catalog.on_publish(self._follow_directories)

    # ---- for others ----------------------------------------------------------------------------------------

    @property
    def sweep_gap_s(self) -> float:
        """From one sweep to the next, in seconds, if all is well."""
        return self._schedule.gap_s + (self.last_sweep_s or 0.0)

    async def sweep_now(self, *, full: bool) -> None:
        """Wait for a sweep that begins from now on, until everything that it found is published.

        Args:
            full: every checkpoint is read again, and what is mounted now is taken for what belongs there.
        """
        waiter = _Waiter(full, anyio.Event())
        self._waiters.append(waiter)
        self._request_sweep()
        await waiter.done.wait()

    def looked(self) -> None:
        """A look at some path of this root ended: a sweep may have become a proof."""
        open_proofs = [proof for proof in self._proofs if not self._is_settled(proof.ticket)]
        if len(open_proofs) < len(self._proofs):
            for proof in self._proofs:
                if proof not in open_proofs:
                    for waiter in proof.waiters:
                        waiter.done.set()
            self._proofs = open_proofs

    def on_hints(self, hints: Hints) -> None:
        """Take up what the watcher says."""
        self._sighted({mark: path for mark, path in hints.sightings.items() if self._is_named(path)})
        self._pipeline.hint(self._keys_of(hints.files))
        # A link to a directory may have any name.
        self._pipeline.hint(Key(self.root, path) for path in hints.links)
        self._scan(hints.directories | {scope for path in hints.files if (scope := scope_of(path)) is not None})
        if hints.everything:
            self._request_sweep()

    async def run(self) -> None:
        """Watch and sweep until cancelled."""
        settings = self._settings
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(
                    watch_root,
                    self.root,
                    self.on_hints,
                    log=self._log,
                    state=self.watching,
                    step_ms=settings.watch_step_ms,
                    debounce_ms=settings.watch_debounce_ms,
                    poll_s=settings.poll_s,
                    follow=(*self._allowed_targets, *(root.path for root in self._roots)),
                )
            )
            tasks.start_soon(self._sweep_forever)
            tasks.start_soon(self._scan_forever)

    # ---- sweeps of the whole root --------------------------------------------------------------------------

    def _request_sweep(self) -> None:
        self._schedule.request(anyio.current_time())
        self._wake_sweep.set()

    async def _sweep_forever(self) -> None:
        while True:
            due_at = self._schedule.due_at()
            assert due_at is not None
            if due_at <= anyio.current_time():
                await self._sweep()
                continue
            with anyio.CancelScope(deadline=due_at):
                await self._wake_sweep.wait()
            self._wake_sweep = anyio.Event()

    async def _sweep(self) -> None:
        self._schedule.began()
        waiters, self._waiters = self._waiters, []
        full = any(waiter.full for waiter in waiters)
        if full:
            self._mounts.accept()
        self.sweep_started_at = time.time()
        ticket = self._completeness.begin(self.root.name, self.sweep_started_at)
        ticket.expects(self._pipeline.repeat_looks_under_way(self.root))
        self._proofs.append(_Proof(ticket, waiters))
        report = await anyio.to_thread.run_sync(
            self._sweep_in_thread, b"", limiter=self._sweep_thread, abandon_on_cancel=True
        )
        suspects = dict.fromkeys(report.suspects)
        if full:
            suspects |= dict.fromkeys(self._catalog.paths(self.root.name))
        keys = [Key(self.root, path) for path in suspects]
        ticket.expects(keys)
        self._sighted(report.sightings)
        self._pipeline.hint(keys, must_read=full)
        self._note(report)
        if report.ok:
            await self._save_mounts(self.root, self._mounts)
        ticket.ended(report.ok)
        self._schedule.ended(anyio.current_time(), report.cpu_s)
        self.sweep_started_at = None
        self._on_swept(report)
        self.looked()

    def _sweep_in_thread(self, subtree: bytes) -> SweepReport:
        try:
            root_fd = os.open(self.root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in SCARCE:
                return sweep_unasked(self.root, error)
            return sweep_unopened(self.root, self._catalog, error)
        try:
            report = sweep_root(
                self.root,
                root_fd,
                self._catalog,
                mounts=self._mounts,
                suffixes=self._settings.suffixes,
                subtree=subtree,
                roots=self._roots,
                follow_links=self._allowed_targets,
            )
            if not subtree:
                self._after_whole_sweep(root_fd, report)
        except OSError as error:  # the table of mounts could not be read: only the walk itself is safe from that
            return sweep_unasked(self.root, error)
        finally:
            os.close(root_fd)
        return report

    def _after_whole_sweep(self, root_fd: int, report: SweepReport) -> None:
        """Runs in the sweep's thread: what takes the disk, but is no news."""
        now = time.monotonic()
        self._orphans = {path: self._orphans.get(path, now) for path in report.orphans}
        orphans = [path for path, since in self._orphans.items() if now - since >= self._settings.sweep_min_s]
        if (report.leftovers or orphans) and self._may_write(self.root):
            for directory in {os.path.dirname(path) for path in report.leftovers}:
                try:
                    clean_leftovers(root_fd, directory)
                except OSError as error:
                    self._log.warning("left-over temporary files stay", error=str(error))
            if self._settings.sidecars is Sidecars.AUTO:
                self._remove_orphans(root_fd, orphans)

    def _remove_orphans(self, root_fd: int, paths: Iterable[bytes]) -> None:
        """Remove our sidecars whose checkpoints are gone; those of others stay.

        A kill comes between the two, or a checkpoint goes while its sidecar is written. One that was just copied in
        ahead of its checkpoint is not taken for that: an orphan must be one for a while.
        """
        files = DirectFiles(root_fd)
        for path in paths:
            directory, name = os.path.split(path)
            names = checkpoints_of_sidecar(name, self._settings.suffixes)
            try:
                if all(files.status(os.path.join(directory, each)) is None for each in names):
                    remove_sidecar(root_fd, path)
            except OSError as error:
                self._log.warning("a sidecar without a checkpoint stays", error=str(error))

    def _note(self, report: SweepReport) -> None:
        is_first = self.last_sweep_s is None
        self.last_sweep_s = report.seconds
        self.skipped_links = report.skipped_links
        self.odd = report.odd
        online = report.directories > 0 if report.asked else self.online
        if self.online and not online:
            self._log.warning("root is offline; what was known stays listed", root=self.root.name, error=report.error)
        elif is_first and not online:
            self._log.warning(
                "root cannot be listed; it is looked for again and again", root=self.root.name, error=report.error
            )
        elif online and not self.online and self.last_sweep_s is not None:
            self._log.info("root is online", root=self.root.name, checkpoints=report.checkpoints)
        self.online = online
        unlisted = next((f"{os.fsdecode(path)}: {why}" for path, why in report.unreachable.items()), None)
        self.last_error = report.error or unlisted
        # Mounts that changed meanwhile are no trouble of the root: the next sweep tells.
        self.sweep_error = report.error if report.unreachable or not report.asked else None
        self._completeness.set_attribute_cache(self.root.name, report.attribute_cache_s)

    def _is_settled(self, ticket: Ticket[Key]) -> bool:
        if ticket.is_proof or ticket.ended_well is False:
            return True
        return self._completeness.is_met(ticket)

    # ---- directories that become or cease to be checkpoints ------------------------------------------------

    def _is_directory(self, record: Record) -> bool:
        identities = record.identities
        return record.entry.root == self.root.name and identities.shards is not None and identities.link is None

    def _follow_directories(self, batch: Batch) -> None:
        """What lies in a directory is listed no more once that is a checkpoint as a whole, and again when it ceases."""
        concerned: set[bytes] = set()
        for item in batch.items:
            if isinstance(item, Tombstone) or not self._is_directory(item):
                if (path := self._claimed.pop(id_of(item), None)) is not None:
                    concerned.add(path)
            elif item.entry.id not in self._claimed:
                self._claimed[item.entry.id] = item.relative_path
                if self._catalog.has_beneath(self.root.name, item.relative_path):
                    concerned.add(item.relative_path)
        self._scan(concerned)

    def _directories_with(self, path: bytes) -> list[bytes]:
        """The directories that are listed as checkpoints and that `path` is, or is part of."""
        names = (path, *directories_above(path))
        return [each for each in names if self._catalog.is_directory(self.root.name, each)]

    # ---- scans of what has just changed --------------------------------------------------------------------

    def _scan(self, subtrees: Iterable[bytes]) -> None:
        before = len(self._subtrees)
        self._subtrees.update(subtrees)
        if len(self._subtrees) > before:
            self._wake_scan.set()

    async def _scan_forever(self) -> None:
        while True:
            await self._wake_scan.wait()
            self._wake_scan = anyio.Event()
            subtrees, self._subtrees = outermost(self._subtrees), set()
            if b"" in subtrees:
                self._request_sweep()
                continue
            # What a look under way has not published yet, the scan cannot miss.
            self._pipeline.repeat_looks_under_way(self.root, subtrees)
            reports = await anyio.to_thread.run_sync(
                self._scan_in_thread, subtrees, limiter=self._scan_thread, abandon_on_cancel=True
            )
            for report in reports:  # all of them first: what left one of these directories may be in another
                self._sighted(report.sightings)
            self._pipeline.hint(Key(self.root, path) for report in reports for path in report.suspects)

    def _scan_in_thread(self, subtrees: Iterable[bytes]) -> list[SweepReport]:
        reports: list[SweepReport] = []
        for subtree in subtrees:
            # Most names that vanish were never directories: temporary files, and checkpoints, which are looked at.
            known = self._catalog.has_beneath(self.root.name, subtree)
            if known or os.path.isdir(self.root.join(subtree)):
                reports.append(self._sweep_in_thread(subtree))
        return reports

    def _is_named(self, path: bytes) -> bool:
        return is_checkpoint_name(os.path.basename(path), self._settings.suffixes)

    def _sighted(self, sightings: Mapping[Mark, bytes]) -> None:
        self._pipeline.sighted((mark, Key(self.root, path)) for mark, path in sightings.items())

    def _keys_of(self, paths: Iterable[bytes]) -> Iterator[Key]:
        """The checkpoints that changed files may concern."""
        suffixes = self._settings.suffixes
        for path in paths:
            directory, name = os.path.split(path)
            whole = self._directories_with(path)
            for each in whole or self._directories_made_by(path):
                yield Key(self.root, each)
            if whole:
                continue
            if is_checkpoint_name(name, suffixes):
                yield Key(self.root, path)
            for concerned in (*checkpoints_of_sidecar(name, suffixes), *checkpoints_of_config(name, suffixes)):
                candidate = os.path.join(directory, concerned)
                if self._catalog.find(self.root.name, candidate) is not None:
                    yield Key(self.root, candidate)

    @staticmethod
    def _directories_made_by(path: bytes) -> list[bytes]:
        """The directories above that may have become a checkpoint by this file."""
        if not is_member_name(os.path.basename(path)):
            return []
        return list(itertools.islice(directories_above(path), DEPTH))


def root_status(tree: Tree, completeness: Completeness[Key], *, writable: bool | None) -> RootStatus:
    """One root as health shows it."""
    return RootStatus(
        path=tree.root.name,
        online=tree.online,
        watching=tree.watching.watching,
        writable=writable,
        complete_as_of=completeness.complete_as_of(tree.root.name),
        sweep_started_at=tree.sweep_started_at,
        last_sweep_s=tree.last_sweep_s,
        last_error=tree.last_error or tree.watching.last_error,
        sweep_error=tree.sweep_error,
    )
