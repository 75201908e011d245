"""Which changes of a run's records are news: those of files that stay as they are, and those of logs that grow."""

import hashlib
import os
from collections.abc import Iterable, Mapping

import msgspec

from ckptd.validators.inspection import FileIdentity

from .run_files import HPARAMS, METRICS_LOG, is_log

TOGETHER_NS = 10 * 1_000_000_000
"""Lightning before 2.6 wrote `hparams.yaml` anew, with the same text, just before each time that it wrote to its log
(lightning/pytorch/loggers/csv_logs.py, `ExperimentWriter.save`)."""


def record_identities(records: Iterable[tuple[bytes, FileIdentity]]) -> tuple[str | None, tuple[FileIdentity, ...]]:
    """A digest of the records that are no logs, None where there are none, and the logs' own identities."""
    found = dict(records)
    digest = hashlib.blake2b(digest_size=12)
    logs = []
    for path, identity in found.items():
        if is_log(path):
            logs.append(identity)
        else:
            digest.update(msgspec.msgpack.encode((path, steady(path, identity, found))))
    return (digest.hexdigest() if len(logs) < len(found) else None), tuple(logs)


def steady(path: bytes, identity: FileIdentity, records: Mapping[bytes, FileIdentity]) -> FileIdentity:
    """The identity by which a config or record counts: without its times, where the logger writes both together.

    Edited by hand, its time is another one than the log's, and counts.
    """
    if os.path.basename(path) != HPARAMS:
        return identity
    log = records.get(os.path.join(os.path.dirname(path), METRICS_LOG))
    if log is None or abs(log.mtime_ns - identity.mtime_ns) > TOGETHER_NS:
        return identity
    return FileIdentity(identity.inode, identity.size, 0, 0)
