"""What launchers and loggers leave in a run's directory: which of their files belong to the checkpoints there."""

import datetime as dt
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .experiment import Files

DIRECTORY_CONFIGS = (b"config.yaml", b"hparams.yaml", b"args.yaml", b"params.yaml", b"params.json")
"""Of LightningCLI and others, Lightning's loggers, timm and Ultralytics, DVC, Ray Tune."""
HYDRA = b".hydra"
# hydra/core/utils.py, `run_job`: all three are written together, before the job begins
HYDRA_CONFIG, HYDRA_OVERRIDES, HYDRA_SETTINGS = b"config.yaml", b"overrides.yaml", b"hydra.yaml"
# lightning/fabric/loggers/csv_logs.py, `_ExperimentWriter.NAME_METRICS_FILE`
METRICS_LOG = b"metrics.csv"
HPARAMS = b"hparams.yaml"
LOG_DIRECTORIES = (b"lightning_logs", b"csv", b"csv_logs", b"csv_logger")
"""Where a CSVLogger keeps its `version_N` in a run whose checkpoints lie elsewhere: its default, and usual names."""

# mlflow/store/tracking/file_store.py, `FileStore.META_DATA_FILE_NAME`
MLRUNS, MLFLOW_META, MLFLOW_ARTIFACTS = b"mlruns", b"meta.yaml", b"artifacts"

WANDB = b"wandb"
# wandb/sdk/lib/filenames.py
WANDB_CONFIG, WANDB_SUMMARY, WANDB_METADATA = b"config.yaml", b"wandb-summary.json", b"wandb-metadata.json"
WANDB_ANCESTORS = 3
"""Directories above the run in which W&B's own is looked for: `save_dir/<project>/<run id>/checkpoints/`."""
WANDB_RUNS = 50
"""Runs in one directory whose times are compared; of more, only a name can say which one is meant."""

_WANDB_RUN = re.compile(rb"(?:offline-)?run-([0-9]{8}_[0-9]{6})-([^/]+)\Z")
_VERSION = re.compile(rb"version_[0-9]+\Z")
# What W&B writes at the start of a run, and what it writes to until its end.
_BEGUN = (b"files/requirements.txt", b"files/wandb-metadata.json", b"files/conda-environment.yaml")
_ENDED = (b"files/wandb-summary.json", b"files/config.yaml", b"files/output.log", b"logs/debug-internal.log")
_NS = 1_000_000_000
_EARLY_NS, _LATE_NS = 5 * _NS, 60 * _NS
"""How far before a run's first and behind its last write a checkpoint of it may lie."""
_ZONE_S, _MOST_ZONES = 900, 56
"""Offsets from UTC are multiples of 15 minutes, up to 14 hours."""
_ZONE_SLACK_S = 120


class WandbRun(msgspec.Struct, frozen=True):
    """The local directory of one W&B run: `wandb/run-20251011_004442-3kd8s0ab`."""

    directory: bytes
    """Relative to the root."""
    id: bytes
    started: bytes
    """As in the name: the local time of the machine that trained."""

    @classmethod
    def of(cls, parent: bytes, name: bytes) -> "WandbRun | None":
        """The run whose directory has this name; None where it is none's."""
        match = _WANDB_RUN.match(name)
        return None if match is None else cls(os.path.join(parent, name), match[2], match[1])


class RunFiles(msgspec.Struct, frozen=True):
    """What all checkpoints of a directory share. Paths are relative to the root."""

    config: bytes | None = None
    """Hydra's, else one beside the checkpoints or of a logger."""
    records: tuple[bytes, ...] = ()
    """Hydra's overrides and settings, a logger's hyper-parameters that are not the config, its metrics."""
    wandb: tuple[WandbRun, ...] = ()
    """The W&B runs of the run's own directory, in the order of their start."""
    wandb_above: tuple[WandbRun, ...] = ()
    """Those of directories above, as far as the checkpoints' path names their id."""


# ---- finding ---------------------------------------------------------------------------------------------------


def find_run_files(view: "Files", directory: bytes, runs: Sequence[bytes]) -> RunFiles:
    """Find what belongs to all checkpoints of a directory: depends on nothing else, so it can be cached.

    Args:
        view: of the files beneath the root.
        directory: of the checkpoints.
        runs: the directories of the run that wrote them, the nearest first.

    Raises:
        OSError: the view could not tell whether a file is there.
    """
    hydra = _hydra(view, runs)
    loggers = tuple(dict.fromkeys((directory, *runs, *_versions(view, runs))))
    config = hydra or _first_file(view, (os.path.join(place, name) for place in loggers for name in DIRECTORY_CONFIGS))
    above = os.path.dirname(hydra) if hydra else b""
    settings = [os.path.join(above, name) for name in (HYDRA_OVERRIDES, HYDRA_SETTINGS)] if hydra else []
    hparams = _first_file(view, (os.path.join(place, HPARAMS) for place in loggers))
    log = _first_file(view, (os.path.join(place, METRICS_LOG) for place in loggers))
    records = [*(path for path in settings if is_file(view, path)), *([hparams] if hparams != config else []), log]
    records += [path for path in _mlflow(directory) if is_file(view, path)]
    return RunFiles(
        config=config,
        records=tuple(path for path in records if path is not None),
        wandb=tuple(run for place in dict.fromkeys(runs) for run in _wandb_runs(view, place)),
        wandb_above=tuple(_wandb_above(view, directory, runs)),
    )


def wandb_files(view: "Files", run: WandbRun) -> tuple[bytes | None, tuple[bytes, ...]]:
    """The config of a W&B run, and what else it says of itself."""
    config, *others = (
        path if is_file(view, path) else None
        for path in (
            os.path.join(run.directory, b"files", name) for name in (WANDB_CONFIG, WANDB_SUMMARY, WANDB_METADATA)
        )
    )
    return config, tuple(path for path in others if path is not None)


def is_file(view: "Files", path: bytes) -> bool:
    """Whether a regular file is there."""
    status = view.status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_log(path: bytes) -> bool:
    """Whether a training goes on writing to a file of this name: what it says of a checkpoint may come later."""
    return os.path.basename(path) in (METRICS_LOG, WANDB_SUMMARY)


def _hydra(view: "Files", runs: Sequence[bytes]) -> bytes | None:
    places = dict.fromkeys(place for run in runs for place in (run, os.path.dirname(run)))
    return _first_file(view, (os.path.join(place, HYDRA, HYDRA_CONFIG) for place in places))


def _versions(view: "Files", runs: Sequence[bytes]) -> Iterator[bytes]:
    """The only `version_N` of a run's logger; of several nobody knows which one wrote the checkpoints."""
    for run in dict.fromkeys(runs):
        for place in (os.path.join(run, name) for name in LOG_DIRECTORIES):
            versions = [name for name in view.names(place) if _VERSION.match(name)]
            if len(versions) == 1:
                yield os.path.join(place, versions[0])


def _mlflow(directory: bytes) -> Iterator[bytes]:
    """What MLflow's file store says of the experiment: `mlruns/<experiment id>/<run id>/artifacts/…`."""
    parts = directory.split(b"/")
    for index in range(len(parts) - 3):
        if parts[index] == MLRUNS and parts[index + 3] == MLFLOW_ARTIFACTS:
            yield b"/".join((*parts[: index + 2], MLFLOW_META))


def _wandb_runs(view: "Files", place: bytes) -> list[WandbRun]:
    wandb = os.path.join(place, WANDB)
    runs = filter(None, (WandbRun.of(wandb, name) for name in view.names(wandb)))
    return sorted(runs, key=lambda run: (run.started, run.id))


def _wandb_above(view: "Files", directory: bytes, runs: Sequence[bytes]) -> Iterator[WandbRun]:
    named = frozenset(directory.split(b"/"))
    for place in _ancestors(runs[0], WANDB_ANCESTORS):
        if place not in runs:
            yield from (run for run in _wandb_runs(view, place) if run.id in named)


def _ancestors(directory: bytes, most: int) -> Iterator[bytes]:
    for _ in range(most):
        if not directory:
            return
        directory = os.path.dirname(directory)
        yield directory


def _first_file(view: "Files", paths: Iterable[bytes]) -> bytes | None:
    return next((path for path in paths if is_file(view, path)), None)


# ---- which W&B run wrote a checkpoint --------------------------------------------------------------------------


def wandb_run_of(view: "Files", found: RunFiles, relative_path: bytes) -> WandbRun | None:
    """The W&B run that wrote a checkpoint; None where there is none, or nobody knows which of several.

    The one in whose directory the checkpoint lies; else one whose id is part of its path; else the only one of the run
    directory, unless it began after the checkpoint was written; of several the one that was under way then.

    Raises:
        OSError: the view could not tell when a file was written.
    """
    inside = _holding(relative_path)
    if inside is not None:
        return inside
    parts = frozenset(relative_path.split(b"/"))
    named = [run for run in (*found.wandb, *found.wandb_above) if run.id in parts]
    if named:
        return max(named, key=lambda run: run.started) if len({run.id for run in named}) == 1 else None
    if not found.wandb:
        return None
    status = view.status(relative_path)
    if len({run.id for run in found.wandb}) == 1:
        span = _span(view, found.wandb[0])
        is_older = status is not None and span is not None and status.st_mtime_ns < span[0] - _EARLY_NS
        return None if is_older else found.wandb[-1]
    if status is None or len(found.wandb) > WANDB_RUNS:
        return None
    return _under_way(view, found.wandb, status.st_mtime_ns)


def _holding(relative_path: bytes) -> WandbRun | None:
    parts = relative_path.split(b"/")
    for index in range(len(parts) - 2, 0, -1):
        if parts[index - 1] == WANDB:
            run = WandbRun.of(b"/".join(parts[:index]), parts[index])
            if run is not None:
                return run
    return None


def _under_way(view: "Files", runs: Sequence[WandbRun], moment_ns: int) -> WandbRun | None:
    spans = [(run, span) for run in runs if (span := _span(view, run)) is not None]
    if len(spans) < len(runs):  # one of them may have been it
        return None
    for early_ns, late_ns in ((0, 0), (_EARLY_NS, _LATE_NS)):
        fitting = [run for run, (begun, ended) in spans if begun - early_ns <= moment_ns <= ended + late_ns]
        if fitting:
            return fitting[-1] if len({run.id for run in fitting}) == 1 else None
    return None


def _span(view: "Files", run: WandbRun) -> tuple[int, int] | None:
    """From when to when a run wrote, in nanoseconds of its files' times; None where those are not the original ones.

    The time in the directory's name proves it: it differs from that of the first files by an offset from UTC.
    """
    begun = _times(view, run, _BEGUN)
    ended = _times(view, run, (*_ENDED, b"run-" + run.id + b".wandb"))
    if not begun or not ended:
        return None
    try:
        named = dt.datetime.strptime(run.started.decode("ascii"), "%Y%m%d_%H%M%S").replace(tzinfo=dt.UTC).timestamp()
    except ValueError:
        return None
    offset_s = named - min(begun) / _NS
    zones = round(offset_s / _ZONE_S)
    if abs(zones) > _MOST_ZONES or abs(offset_s - zones * _ZONE_S) > _ZONE_SLACK_S:
        return None
    return min(begun), max(*begun, *ended)


def _times(view: "Files", run: WandbRun, names: Iterable[bytes]) -> list[int]:
    statuses = (view.status(os.path.join(run.directory, name)) for name in names)
    return [status.st_mtime_ns for status in statuses if status is not None]
