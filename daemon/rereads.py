"""Rereads: checkpoints that are described again though nothing of them has changed, and why."""

import hashlib
import time
from collections.abc import Sequence

import anyio
import anyio.to_thread
import msgspec
import structlog

from ckptd.catalog.redaction import REDACTION_VERSION
from ckptd.catalog.roots import Root
from ckptd.catalog.search_text import TEXT_VERSION
from ckptd.catalog.state import State, StateError
from ckptd.catalog.store import Catalog
from ckptd.validators.architectures import table_digest

from . import second_tries
from .collectors import VERSION
from .engine import Engine
from .journal import Journal
from .settings import Settings

JUDGED_BY = "judged_by"
"""Under this the state keeps the digest of what was asked of every checkpoint."""


class Rereads:
    """Other questions are asked than at the last run; a description was lost; a worker died, and is tried again."""

    def __init__(
        self,
        catalog: Catalog,
        state: State,
        journal: Journal,
        engine: Engine,
        log: structlog.stdlib.BoundLogger,
        *,
        judged_by: str,
    ) -> None:
        """Args:
        judged_by: see the function of that name.
        """
        self._catalog = catalog
        self._state = state
        self._journal = journal
        self._engine = engine
        self._log = log
        self._judged_by = judged_by
        self._crashed_at = 0.0
        self.judging = False
        """Not everything is described by what is asked now."""

    async def begin(self) -> None:
        """Have everything described again, in the background, where other questions are asked than at the last run."""
        if await anyio.to_thread.run_sync(self._state.get_meta, JUDGED_BY) == self._judged_by:
            return
        self.judging = True
        if not len(self._catalog):
            await self._keep_judged_by()
            return
        self._log.info("what is required, recognised or redacted has changed: every checkpoint is described again")
        # By way of the undescribed: what a description says can change where nothing of the entry does.
        self._journal.undescribed.update(record.entry.id for record in self._catalog)
        self._read_undescribed()

    async def step(self) -> None:
        """Take up what is due, and keep what is done. To be called now and then."""
        self._read_undescribed()
        await self.note_judged()
        if self._engine.is_running and anyio.current_time() >= self._crashed_at:
            await self._retry_crashed()
            self._crashed_at = anyio.current_time() + second_tries.CHECK_S

    async def note_judged(self) -> None:
        """Keep in the state that everything is judged by what is asked now, once it is."""
        if not self._engine.is_running or self._engine.pending or self._journal.undescribed:
            return
        if self.judging:
            await self._keep_judged_by()

    async def _keep_judged_by(self) -> None:
        if not self._journal.durable:
            return
        try:
            await self._journal.write(lambda: self._state.set_meta(JUDGED_BY, self._judged_by))
            self.judging = False
        except StateError as error:
            self._log.warning("what the checkpoints were judged by could not be kept", error=str(error))

    def _read_undescribed(self) -> None:
        """Read again what was described while the state could not be written."""
        if not self._journal.undescribed or not self._journal.durable or not self._engine.is_running:
            return
        ids = self._journal.take_undescribed()
        self._engine.read_again(record for each in ids if (record := self._catalog.get(each)) is not None)

    async def _retry_crashed(self) -> None:
        """Read again what ended a worker, where a day has passed since, or another ckptd did it."""
        kept, now = await anyio.to_thread.run_sync(self._state.get_meta, second_tries.TRIED), time.time()
        if not second_tries.is_due(kept, VERSION, now):
            return
        try:
            # Kept before they are read: should they end this process as well, the next one leaves them alone.
            await self._journal.write(
                lambda: self._state.set_meta(second_tries.TRIED, second_tries.tried(VERSION, now))
            )
        except StateError:
            return  # told by the journal; asked again in a minute
        records = second_tries.crashed(self._catalog)
        if records:
            self._log.info("what ended a worker is tried again", checkpoints=len(records))
            self._engine.read_again(records)
            if self._engine.verifier is not None:  # it was reading every byte that ended some of them
                self._engine.verifier.try_again(records)


def judged_by(settings: Settings, roots: Sequence[Root]) -> str:
    """A digest of what is asked of checkpoints besides what is in them: the architectures known, the keys required,
    what is redacted; and of how what is searched is put together."""
    required = {root.name: settings.required_at(root.path) for root in roots}
    asked = [table_digest(settings.architectures), required, TEXT_VERSION, REDACTION_VERSION, settings.redaction]
    return hashlib.blake2b(msgspec.json.encode(asked, order="sorted"), digest_size=16).hexdigest()
