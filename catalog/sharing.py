"""Sharing equal values between records: what is said of a run and a model is the same in hundreds of them."""

from typing import Any

import msgspec

from ckptd.validators.inspection import FileIdentity

from .entry import CheckpointEntry, Record

VALUES_KEPT = 20_000
"""Of one field."""

_REPEATED = (
    "root",
    "exp_name",
    "run_id",
    "architecture",
    "backbone",
    "monitor",
    "monitor_mode",
    "format",
    "n_parameters",
    "weights_bytes",
    "optimizer_bytes",
    "dtypes",
    "findings",
    "config_path",
)

_set = msgspec.structs.force_setattr


class SharedValues:
    """One copy of each value that records repeat: saves 1.2 KB of 3.3 KB per checkpoint in a usual tree.

    Bounded: at `VALUES_KEPT` values a table starts anew, which costs copies, never correctness.
    """

    def __init__(self) -> None:
        # One table for each field: 1, 1.0 and True are equal, and must not be mixed up.
        self._tables: dict[str, dict[object, object]] = {name: {} for name in _REPEATED}
        self._configs: dict[FileIdentity, FileIdentity] = {}
        self._runs: dict[Any, Any] = {}
        self._text_keys: dict[int, int] = {}

    def share(self, record: Record) -> None:
        """Make `record` of shared values, in place: its entry and identities must be nobody else's yet.

        Each value is replaced by an equal one of the same type, so nothing that can be read of it changes.
        """
        entry, identities = record.entry, record.identities
        for name, table in self._tables.items():
            value = getattr(entry, name)
            if value is not None:
                kept = table.setdefault(value, value)
                if kept is not value:
                    _set(entry, name, kept)
                elif len(table) > VALUES_KEPT:
                    table.clear()
        if identities.config is not None:
            _set(identities, "config", self._configs.setdefault(identities.config, identities.config))
            if len(self._configs) > VALUES_KEPT:
                self._configs.clear()
        for name, about_run in (("records", identities.records), ("logs", identities.logs)):
            if about_run:
                _set(identities, name, self._runs.setdefault(about_run, about_run))
        if len(self._runs) > VALUES_KEPT:
            self._runs.clear()
        if record.text_key is not None:
            _set(record, "text_key", self._text_keys.setdefault(record.text_key, record.text_key))
            if len(self._text_keys) > VALUES_KEPT:
                self._text_keys.clear()
        _share_numbers(record, entry)


def _share_numbers(record: Record, entry: CheckpointEntry) -> None:
    """What one record says twice."""
    file = record.identities.file
    if file.mtime_ns == record.modified_ns:
        _set(record, "modified_ns", file.mtime_ns)
    if file.size == entry.size_bytes:
        _set(entry, "size_bytes", file.size)
    value = None if entry.monitor is None else entry.metrics.get(entry.monitor)
    if type(value) is type(entry.monitor_value) and value == entry.monitor_value:
        _set(entry, "monitor_value", value)
