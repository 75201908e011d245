"""What a run's records say: Hydra's overrides and settings, Lightning's hyper-parameters and metrics, W&B's files."""

import os
import re
from collections.abc import Sequence

import msgspec

from ckptd.validators.errors import Unreadable
from ckptd.validators.inspection import FileIdentity, Inspection, Plain
from ckptd.validators.reader import FileReader, identity_of

from .documents import MAX_BYTES, DocumentError, load_document
from .file_names import parse_file_name
from .metadata import as_count, as_text
from .metrics_log import LoggedMetrics, metrics_at
from .run_files import (
    DIRECTORY_CONFIGS,
    HYDRA,
    HYDRA_OVERRIDES,
    HYDRA_SETTINGS,
    METRICS_LOG,
    MLFLOW_META,
    WANDB_CONFIG,
    WANDB_METADATA,
    WANDB_SUMMARY,
    is_log,
)

SETTLED_NS = 24 * 3600 * 1_000_000_000
"""A log that is still written to so long after its checkpoint, and has not passed it, counts something else."""
MAX_OVERRIDES = 500
MAX_OVERRIDE = 1_000

# What W&B adds to a summary by itself.
_WANDB_OWN = re.compile(r"_|(?:trainer|train)/global_step\Z|global_step\Z|epoch\Z|(?:train/)?epoch\Z")
_TEST = re.compile(r"test(?:[/_.]|\Z)", re.IGNORECASE)
_OVERRIDE = re.compile(r"(?:\+\+|\+|--)?([A-Za-z_][\w.\-]*)=(.*)\Z", re.DOTALL)
_MAX_METRICS = 200
_WRAPPED = frozenset({"value", "desc"})


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the run that wrote a checkpoint, besides its config."""

    overrides: dict[str, Plain] = {}
    """What was said on Hydra's command line, nested: `trainer.max_epochs=3`."""
    experiment: str | None = None
    """The experiment that was chosen there, or the name that was given to the job."""
    output_directory: str | None = None
    """Where Hydra let the run write, absolute, on the machine that trained."""
    hparams: Plain = None
    mlflow_experiment: str | None = None
    """The name of the experiment in MLflow's file store, which counts them."""
    wandb_config: Plain = None
    wandb_arguments: dict[str, Plain] = {}
    """The command line, as W&B recorded it."""
    logged: dict[str, float] = {}
    """The metrics of the checkpoint's very step, from the log of a CSVLogger."""
    summary: dict[str, float] = {}
    """W&B's last values, where the step they are of is the checkpoint's."""
    settled_logs: tuple[bool, ...] = ()
    """For each log, in the order of the records: whether what comes later changes nothing."""


class _Moment(msgspec.Struct, frozen=True):
    """The checkpoint's place in the training."""

    logged_step: int | None
    global_step: int | None
    epoch: int | None


def read_run(names: Sequence[bytes], descriptors: Sequence[int], inspection: Inspection, relative_path: bytes) -> Run:
    """Read a run's records. One that cannot be read, or is no such record, says nothing.

    Args:
        names: relative paths of the records.
        descriptors: the same files, opened.
        inspection: of the checkpoint.
        relative_path: of the checkpoint.
    """
    moment = _moment(inspection, relative_path)
    known: dict[str, Plain] = {}
    settled: list[bool] = []
    for name, fd in zip(names, descriptors, strict=True):
        if is_log(name):
            found, is_final = _read_log(name, fd, moment)
            late = _identity(fd).mtime_ns - inspection.identity.mtime_ns > SETTLED_NS
            settled.append(is_final or late)
        else:
            found = _read_record(name, fd)
        known |= {field: value for field, value in found.items() if value}
    return Run(**known, settled_logs=tuple(settled))


def _moment(inspection: Inspection, relative_path: bytes) -> _Moment:
    named = parse_file_name(relative_path)
    step = named.step if inspection.global_step is None else inspection.global_step
    epoch = named.epoch if inspection.epoch is None else inspection.epoch
    logged = inspection.logged_step
    if logged is None and inspection.lightning_version is None:
        logged = step  # a loop of somebody's own says under which step it logs
    return _Moment(logged, step, epoch)


def _read_record(name: bytes, fd: int) -> dict[str, Plain]:
    try:
        value = load_document(FileReader(fd).read(0, MAX_BYTES + 1), is_json=name.endswith(b".json"))
    except (DocumentError, Unreadable):
        return {}
    directory, base = os.path.split(name)
    if os.path.basename(directory) == HYDRA:
        return _hydra(base, value)
    if base == WANDB_METADATA:
        arguments = value.get("args") if isinstance(value, dict) else None
        return {"wandb_arguments": read_overrides(arguments)}
    if base == WANDB_CONFIG and os.path.basename(directory) == b"files":
        return {"wandb_config": unwrapped(value)}
    if base == MLFLOW_META:
        return {"mlflow_experiment": _mlflow_experiment(value)}
    return {"hparams": value} if base in DIRECTORY_CONFIGS else {}


def _read_log(name: bytes, fd: int, moment: _Moment) -> tuple[dict[str, Plain], bool]:
    try:
        reader = FileReader(fd)
        if os.path.basename(name) == METRICS_LOG:
            logged = metrics_at(reader, step=moment.logged_step, epoch=moment.epoch)
            return {"logged": logged.metrics}, logged.is_final
        if os.path.basename(name) == WANDB_SUMMARY:
            summary = _summary(load_document(reader.read(0, MAX_BYTES + 1), is_json=True), moment)
            return {"summary": summary.metrics}, summary.is_final
    except (DocumentError, Unreadable):
        pass
    return {}, False


def _identity(fd: int) -> FileIdentity:
    return identity_of(os.fstat(fd))


# ---- Hydra -----------------------------------------------------------------------------------------------------


def _hydra(base: bytes, value: Plain) -> dict[str, Plain]:
    if base == HYDRA_OVERRIDES:
        return {"overrides": read_overrides(value)}
    if base != HYDRA_SETTINGS or not isinstance(value, dict):
        return {}
    hydra = _mapping(value, "hydra")
    runtime = _mapping(hydra, "runtime")
    return {
        "experiment": as_text(_mapping(runtime, "choices").get("experiment")) or _job_name(hydra),
        "output_directory": as_text(runtime.get("output_dir")),
    }


def _job_name(hydra: dict[str, Plain]) -> str | None:
    """The job's name where somebody gave it one; by default it is the name of the script, which names no experiment."""
    given = read_overrides(_mapping(hydra, "overrides").get("hydra"))
    return as_text(_mapping(_mapping(given, "hydra"), "job").get("name"))


def read_overrides(value: Plain) -> dict[str, Plain]:
    """`key=value` of a command line as nested data; what chooses among config groups (`model=dbnet`) is left out.

    A group is chosen by a bare word, which a value at the top level may be as well: of those only the names of an
    experiment are known to be values.
    """
    found: dict[str, Plain] = {}
    for item in (value if isinstance(value, list) else [])[:MAX_OVERRIDES]:
        match = _OVERRIDE.match(item) if isinstance(item, str) and len(item) <= MAX_OVERRIDE else None
        if match is None:
            continue
        *sections, name = match[1].split(".")
        if sections or name in ("exp_name", "experiment_name", "max_epochs"):
            _put(found, sections, name, _scalar(match[2]))
    return found


def _put(found: dict[str, Plain], sections: Sequence[str], name: str, value: Plain) -> None:
    place = found
    for section in sections[:8]:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            return
        place = inner
    place[name] = value


def _scalar(text: str) -> Plain:
    try:
        return load_document(text.encode("utf-8", "replace"), is_json=False)
    except DocumentError:
        return text


def _mapping(value: dict[str, Plain], name: str) -> dict[str, Plain]:
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}


def _mlflow_experiment(value: Plain) -> str | None:
    """What the experiment is called; `Default` is what everything is in that was given none."""
    name = as_text(value.get("name")) if isinstance(value, dict) else None
    return None if name == "Default" else name


# ---- W&B -------------------------------------------------------------------------------------------------------


def unwrapped(config: Plain) -> Plain:
    """A config as it was given to W&B, which keeps each value as `key: {value: …, desc: …}`; any other as it is."""
    if not isinstance(config, dict) or not config:
        return config
    values = {name: part["value"] for name, part in config.items() if isinstance(part, dict) and "value" in part}
    marked = "_wandb" in config or "wandb_version" in config
    wrapped = all(name in values and set(part) <= _WRAPPED for name, part in config.items())
    if not marked and not wrapped:
        return config
    return {name: value for name, value in values.items() if name != "_wandb"}


def _summary(value: Plain, moment: _Moment) -> LoggedMetrics:
    """The last values of a run, if its last step is the checkpoint's and the epochs do not contradict that.

    Which of them were logged at an earlier step the file does not say.
    """
    if not isinstance(value, dict):
        return LoggedMetrics()
    step, wanted = _summary_step(value, moment)
    if step is None or not wanted:
        return LoggedMetrics()
    if step not in wanted:
        return LoggedMetrics(is_final=step > max(wanted))
    epoch = as_count(value.get("epoch"))
    if epoch is not None and moment.epoch is not None and epoch not in (moment.epoch, moment.epoch - 1):
        return LoggedMetrics(is_final=False)
    metrics = {
        name: float(number)
        for name, number in value.items()
        if type(number) in (int, float) and not _WANDB_OWN.match(name) and not _TEST.match(name)
    }
    return LoggedMetrics(dict(list(metrics.items())[:_MAX_METRICS]), is_final=False)


def _summary_step(value: dict[str, Plain], moment: _Moment) -> tuple[int | None, set[int]]:
    """The step of a summary, and the steps that mean the checkpoint's."""
    own = {moment.global_step} if moment.global_step is not None else set()
    # lightning/pytorch/loggers/wandb.py, `log_metrics`: the step that all its loggers use, one behind the checkpoint's,
    # or equal to it for what is logged when the training has ended
    step = as_count(value.get("trainer/global_step"))
    if step is not None:
        return step, own | ({moment.logged_step} if moment.logged_step is not None else set())
    # transformers/integrations/integration_utils.py, `WandbCallback.setup`; `_step` counts what W&B was told
    named = (as_count(value.get(name)) for name in ("train/global_step", "global_step", "_step"))
    return next((number for number in named if number is not None), None), own
