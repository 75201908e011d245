"""Layout conventions of training outputs: companions of a checkpoint, experiment names, run ids, file names."""

import errno
import itertools
import os
import re
import stat
from collections.abc import Sequence
from typing import Protocol

import msgspec

from .file_names import FileNameFacts, is_name_fragment, is_stage, parse_file_name, stem_of
from .roots import DEFAULT_SUFFIXES, has_link, open_beneath
from .run_files import (
    DIRECTORY_CONFIGS,
    MLFLOW_ARTIFACTS,
    MLRUNS,
    RunFiles,
    find_run_files,
    is_file,
    wandb_files,
    wandb_run_of,
)

__all__ = [
    "Companions",
    "DirectFiles",
    "FileNameFacts",
    "Files",
    "checkpoints_of_config",
    "checkpoints_of_sidecar",
    "experiment_name",
    "find_companions",
    "is_companion_name",
    "is_config_name",
    "is_sidecar_name",
    "parse_file_name",
    "run_directory",
    "run_failed",
    "run_id",
    "scope_of",
    "shared_files",
    "sidecar_names",
    "with_run_files",
]

FAILURE = b".FAILURE"
SIDECAR_SUFFIXES = (b".metadata.yaml", b".metadata.json")
STEM_CONFIGS = (b".config.json", b".config.yaml", b".config.yml", b".resolved.config.json")

# ray/train/_internal/storage.py: `checkpoint_000010`; transformers: `checkpoint-500`
_NUMBERED_CHECKPOINT = re.compile(rb"checkpoint[-_][0-9]+\Z")
_CHECKPOINT_DIRECTORIES = frozenset({b"checkpoints", b"checkpoint", b"ckpts", b"ckpt", b"weights"})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
# A link whose target is outside, gone, not a file or not ours to read is no companion; the checkpoint stays readable.
_UNUSABLE_LINK = _ABSENT | {errno.EXDEV, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENXIO}


class Files(Protocol):
    """A view of the files beneath one root: the disk itself, or a sweep's memory of it."""

    def status(self, relative_path: bytes) -> os.stat_result | None:
        """Status of a file, or None where nothing is there.

        Raises:
            OSError: the disk could not say (EIO, ESTALE, EACCES, …): that is not an absence.
        """
        ...

    def names(self, relative_directory: bytes) -> Sequence[bytes]:
        """Names in a directory; none where it does not exist. Raises OSError as `status`."""
        ...


class DirectFiles:
    """The disk itself, beneath an open root. The caller keeps `root_fd` open and closes it."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd

    def status(self, relative_path: bytes) -> os.stat_result | None:
        """As `Files.status`. A link counts as what it points to, if that is a file beneath the root.

        And if the link's owner may read it, see `link_owners`.
        """
        try:
            status = os.stat(relative_path or b".", dir_fd=self._root_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        return self._target(relative_path) if self._is_by_link(relative_path, status) else status

    def names(self, relative_directory: bytes) -> Sequence[bytes]:
        """As `Files.names`. A directory that is a link has none: it may lead out of the root."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(relative_directory or b".", flags, dir_fd=self._root_fd)
        except OSError as error:
            if error.errno in _ABSENT:
                return ()
            raise
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _is_by_link(self, relative_path: bytes, status: os.stat_result) -> bool:
        if stat.S_ISLNK(status.st_mode):
            return True
        return stat.S_ISREG(status.st_mode) and has_link(self._root_fd, relative_path)

    def _target(self, relative_path: bytes) -> os.stat_result | None:
        try:
            fd = open_beneath(self._root_fd, relative_path)
        except OSError as error:
            if error.errno in _UNUSABLE_LINK:
                return None
            raise
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)


class Companions(msgspec.Struct, frozen=True, kw_only=True):
    """The files around a checkpoint that say something about it. Paths are relative to the root."""

    sidecars: tuple[bytes, ...] = ()
    """In the order in which they are consulted."""
    config: bytes | None = None
    run_failed: bool = False
    records: tuple[bytes, ...] = ()
    """What launchers and loggers wrote of the run besides the config: Hydra's overrides and settings, Lightning's
    hyper-parameters and metrics, W&B's files."""
    wandb_run: str | None = None
    """The id of the W&B run that wrote the checkpoint."""


# ---- companions ------------------------------------------------------------------------------------------------


def find_companions(view: Files, relative_path: bytes) -> Companions:
    """Find the sidecars, the config, the failure sentinel and the run's records: about twenty looks at names.

    Raises:
        OSError: the view could not tell whether a file is there.
    """
    directory, name = os.path.split(relative_path)
    own_configs = (os.path.join(directory, stem_of(name) + suffix) for suffix in STEM_CONFIGS)
    return with_run_files(
        view,
        relative_path,
        shared_files(view, directory),
        Companions(
            sidecars=tuple(path for path in sidecar_names(relative_path) if is_file(view, path)),
            config=next((path for path in own_configs if is_file(view, path)), None),
            run_failed=run_failed(view, directory),
        ),
    )


def with_run_files(view: Files, relative_path: bytes, found: RunFiles, own: Companions) -> Companions:
    """A checkpoint's own companions, and what of its run's files belongs to it.

    The order of configs: its own, the run's, W&B's. Whichever is not the config is a record of the run all the same.

    Raises:
        OSError: the view could not tell whether a file is there.
    """
    run = wandb_run_of(view, found, relative_path)
    wandb_config, wandb_records = (None, ()) if run is None else wandb_files(view, run)
    config = own.config or found.config or wandb_config
    others = (wandb_config,) if wandb_config is not None and wandb_config != config else ()
    return msgspec.structs.replace(
        own,
        config=config,
        records=(*found.records, *others, *wandb_records),
        wandb_run=None if run is None else _shown(run.id),
    )


def sidecar_names(relative_path: bytes) -> tuple[bytes, ...]:
    """Where a sidecar of this checkpoint may lie, in the order of consulting: long name, short name, older JSON."""
    directory, name = os.path.split(relative_path)
    bases = dict.fromkeys((name, stem_of(name)))
    return tuple(os.path.join(directory, base + suffix) for suffix in SIDECAR_SUFFIXES for base in bases)


def shared_files(view: Files, directory: bytes) -> RunFiles:
    """What all checkpoints of a directory share. Depends on nothing else, so it can be cached.

    The config is `.hydra/config.yaml` in the run directory or its parent; else `config.yaml`, `hparams.yaml` beside the
    checkpoint, then in the run directory, then of the run's only logger.

    Raises:
        OSError: the view could not tell whether a file is there.
    """
    return find_run_files(view, directory, _run_directories(directory))


def run_failed(view: Files, directory: bytes) -> bool:
    """Whether a `.FAILURE` sentinel lies beside the checkpoints of a directory, or in their run directory."""
    places = dict.fromkeys((directory, *_run_directories(directory)))
    return any(view.status(os.path.join(place, FAILURE)) is not None for place in places)


def run_directory(directory: bytes) -> bytes:
    """The directory of the run that wrote to `directory`: above `checkpoints/`, else the directory itself.

    A directory that is part of a file name (`epoch=3-val/hmean=0.87.ckpt`) is not counted.
    """
    parts = directory.split(b"/") if directory else []
    while parts and (is_name_fragment(parts[-1]) or _NUMBERED_CHECKPOINT.match(parts[-1])):
        parts.pop()
    for index in range(len(parts) - 3):
        if parts[index] == MLRUNS and parts[index + 3] == MLFLOW_ARTIFACTS:
            return b"/".join(parts[: index + 3])
    above = [index for index, part in enumerate(parts) if part.lower() in _CHECKPOINT_DIRECTORIES]
    if above and all(is_stage(part) or is_name_fragment(part) for part in parts[above[-1] + 1 :]):
        parts = parts[: above[-1]]
    return b"/".join(parts)


def _run_directories(directory: bytes) -> tuple[bytes, ...]:
    """The run directory, and the one above `checkpoints/` where something lies between: `exp/checkpoints/fold/`."""
    run = run_directory(directory)
    parts = run.split(b"/") if run else []
    depth = next((d for d in range(len(parts) - 1, -1, -1) if parts[d].lower() in _CHECKPOINT_DIRECTORIES), None)
    return (run,) if depth is None else (run, b"/".join(parts[:depth]))


# ---- from a companion's name back to its checkpoints -----------------------------------------------------------


def is_sidecar_name(name: bytes) -> bool:
    """Whether a file of this name may be a sidecar. Hidden ones are temporary files."""
    return name.endswith(SIDECAR_SUFFIXES) and not name.startswith(b".")


def is_config_name(name: bytes) -> bool:
    """Whether a file of this name may be a config of some checkpoint."""
    return name in DIRECTORY_CONFIGS or (name.endswith(STEM_CONFIGS) and not name.startswith(b"."))


def is_companion_name(name: bytes) -> bool:
    """Whether a change of a file of this name may change what is known of a checkpoint."""
    return name == FAILURE or is_sidecar_name(name) or is_config_name(name)


def checkpoints_of_sidecar(name: bytes, suffixes: Sequence[str] = DEFAULT_SUFFIXES) -> tuple[bytes, ...]:
    """The names that a sidecar's checkpoint may have, most likely first; none if it is no sidecar's name."""
    if not is_sidecar_name(name):
        return ()
    base = next(name[: -len(end)] for end in SIDECAR_SUFFIXES if name.endswith(end))
    return (base, *(base + os.fsencode(suffix) for suffix in suffixes))


def checkpoints_of_config(name: bytes, suffixes: Sequence[str] = DEFAULT_SUFFIXES) -> tuple[bytes, ...]:
    """The checkpoints beside it that a `<stem>.config.*` belongs to; none for a config of whole directories."""
    if name in DIRECTORY_CONFIGS or not is_config_name(name):
        return ()
    stems = dict.fromkeys(name[: -len(end)] for end in STEM_CONFIGS if name.endswith(end))
    return tuple(stem + os.fsencode(suffix) for stem in stems for suffix in ("", *suffixes))


def scope_of(relative_path: bytes) -> bytes | None:
    """The directory beneath which a shared config or sentinel may concern checkpoints; None for other files.

    `run/.hydra/config.yaml`, `run/config.yaml`, `run/.FAILURE` and `run/wandb/run-…/files/config.yaml` all concern
    checkpoints in and beneath `run`.
    """
    directory, name = os.path.split(relative_path)
    if name != FAILURE and name not in DIRECTORY_CONFIGS:
        return None
    parts = directory.split(b"/") if directory else []
    if parts and parts[-1] == b".hydra":
        del parts[-1:]
    elif len(parts) >= 3 and parts[-3] == b"wandb" and b"run-" in parts[-2] and parts[-1] == b"files":
        del parts[-3:]
    return b"/".join(parts)


# ---- experiment names and run ids ------------------------------------------------------------------------------

# A timestamp, date or counter: digits and what stands between them.
_TIME = re.compile(r"[0-9][0-9\-_:.TZ ]*\Z")
_COUNTER = re.compile(r"(?:version|ver|v|run|trial|job|try|attempt|seed|fold|rank)[-_]?[0-9]+\Z", re.I)
_RUN = re.compile(r"(?:offline-)?run-.*\Z")
# ray/tune/experiment/trial.py, `Trial.__str__`: five hexadecimal digits of an id, and a number
_TRIAL = re.compile(r".*_[0-9a-f]{5}_[0-9]{5}(?:_.*)?\Z")
# ultralytics/utils/files.py, `increment_path`: runs/<task>/train, train2, train3
_TASK_RUN = re.compile(r"(?:train|val|exp)[0-9]*\Z")
_UUID = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\Z", re.I)
_HEX_LENGTHS = frozenset({7, 8, 10, 12, 16, 20, 24, 32, 40, 64})
_HEX = re.compile(r"[0-9a-f]+\Z")
_STAMPED = re.compile(r"[0-9]{8}[-_T]?[0-9]{4,6}[-_]([0-9a-z]+)\Z")
# timm/train.py: the time comes before the name, `20240101-120000-resnet50-224`
_STAMPED_NAME = re.compile(r"([0-9]{8}[-_T]?[0-9]{4,6})[-_]([A-Za-z].*)\Z")
_CONTAINERS = frozenset(
    {
        "outputs",
        "output",
        "multirun",
        "ray_results",
        "work_dir",
        "work_dirs",
        "runs",
        "logs",
        "log",
        "lightning_logs",
        "tb_logs",
        "wandb",
        "mlruns",
        "results",
        "experiments",
        "checkpoints",
        "checkpoint",
        "ckpts",
        "ckpt",
        "models",
        "files",
        "artifacts",
        "data",
        "tmp",
    }
)
_RANDOM_ID_LENGTH = 8  # wandb.util.generate_id


def experiment_name(relative_path: bytes, root_basename: bytes = b"") -> str | None:
    """The nearest meaningful directory above `checkpoints/`; the root's own name where nothing else is; else None.

    Timestamps, dates, counters, hashes and directories that every tree has (`outputs`, `lightning_logs`) are no names.
    """
    _, name = _climb(relative_path, root_basename)
    return name


def run_id(relative_path: bytes, root_basename: bytes = b"") -> str | None:
    """What tells this run from others of the same experiment: the run directories between it and the checkpoints.

    `exp/2025-10-11/00-44-42/checkpoints/best.ckpt` → `2025-10-11/00-44-42`; None where there is none.
    """
    run, _ = _climb(relative_path, root_basename)
    return "/".join(run) or None


def _climb(relative_path: bytes, root_basename: bytes) -> tuple[list[str], str | None]:
    run = run_directory(os.path.dirname(relative_path))
    names = [_shown(part) for part in [root_basename, *run.split(b"/")] if part]
    ids: list[str] = []
    for index in range(len(names) - 1, -1, -1):
        name = names[index]
        if name.lower() in _CONTAINERS:
            continue
        if not _is_run_id(name) and not (_TASK_RUN.match(name) and names[index - 2 : index - 1] == ["runs"]):
            stamped = _STAMPED_NAME.match(name)
            return ([stamped.group(1), *ids], stamped.group(2)) if stamped else (ids, name)
        is_counted_experiment = index and names[index - 1] == "mlruns" and ids
        if (index or not root_basename) and not is_counted_experiment:
            ids.insert(0, name)
    return ids, None


def _is_run_id(name: str) -> bool:
    if "=" in name or _TIME.match(name) or _COUNTER.match(name) or _RUN.match(name) or _UUID.match(name):
        return True
    if _TRIAL.match(name):
        return True
    stamped = _STAMPED.match(name)
    return _is_random(stamped.group(1) if stamped else name)


def _is_random(text: str) -> bool:
    """Whether this looks like a hash or a random id. `resnet50` and `face2face` do not."""
    digits = sum(letter.isdigit() for letter in text)
    if _HEX.match(text) and len(text) in _HEX_LENGTHS and digits and digits < len(text):
        return True
    changes = sum(a.isdigit() != b.isdigit() for a, b in itertools.pairwise(text))
    lower = text.isascii() and text.isalnum() and text == text.lower()
    return lower and len(text) == _RANDOM_ID_LENGTH and digits >= 2 and changes >= 3


def _shown(part: bytes) -> str:
    return part.decode("utf-8", "backslashreplace")
