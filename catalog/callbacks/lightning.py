"""MetadataCallback for Lightning: every checkpoint gets its metadata from the training that saved it.

Works with `lightning` and `pytorch_lightning` alike.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
from typing import Any

import msgspec

from ckptd.validators.inspection import FileIdentity, Plain
from ckptd.validators.reader import identity_of

from .facts import Style, TrainingFacts
from .guarded import Guard
from .module_parts import class_names, known_parts
from .saves import local_path, observe_saves
from .surroundings import hydra_config_path, wandb_run_id
from .writer import FLUSH_S, SidecarWriter

_LIBRARIES = ("lightning.pytorch", "pytorch_lightning")
_MAX_FRAMES = 16
"""Between ModelCheckpoint and the strategy lie four calls, and as many again where somebody overrides them."""


class _Saved(msgspec.Struct, frozen=True):
    path: str
    facts: TrainingFacts
    previous: FileIdentity | None


def _bases() -> tuple[type, ...]:
    """The Callback classes of the libraries that this process uses; of one that is installed if it uses none yet."""
    used = [name for name in _LIBRARIES if name in sys.modules]
    installed = [name for name in _LIBRARIES if importlib.util.find_spec(name.split(".")[0]) is not None]
    if not installed:
        raise ImportError("MetadataCallback needs Lightning: pip install lightning, or pip install pytorch-lightning")
    return tuple(importlib.import_module(name).Callback for name in used or installed[:1])


class MetadataCallback(*_bases()):  # type: ignore[misc]
    """Writes `<checkpoint>.metadata.yaml` beside every checkpoint of a Trainer, with the metrics of that very step.

    Whoever saves is covered: any number of ModelCheckpoints, `trainer.save_checkpoint`, exceptions and signals, also
    through AsyncCheckpointIO and the strategies that write directories. Where top-k deletes a checkpoint, its metadata
    goes with it. The work is done in a thread of its own, on global rank zero; what goes wrong is one warning.

    The metrics are `trainer.callback_metrics` at the moment of saving, which is what ModelCheckpoint decides by. Those
    on the CPU are copied there and then; those on a device are cloned there, which waits for nothing, and are read by
    the writing thread.

    Not guaranteed: metadata of saves to remote filesystems (`s3://`), and of the last save when the process is killed;
    the daemon describes what is missing.
    """

    def __init__(
        self,
        exp_name: str | None = None,
        outputs_dir: str | os.PathLike[str] | None = None,
        training_phase: str | None = "training",
        generate_on_save: bool = True,
        validate_schema: bool = True,
        *,
        flush_timeout_s: float = FLUSH_S,
    ) -> None:
        """Args:
        exp_name: Name of the experiment; by default that of the config, else of a directory above the checkpoint.
        outputs_dir: Configs and experiment names are looked for beneath it only.
        training_phase: Written as it is: `training`, `finetuning`, ….
        generate_on_save: Write at each save; otherwise at the end of the fit, for the checkpoints that are left.
        validate_schema: Write nothing that does not read back as it was.
        flush_timeout_s: How long the end of a fit waits for metadata that is not written yet.
        """
        super().__init__()
        self.exp_name = exp_name
        self.outputs_dir = None if outputs_dir is None else os.path.abspath(os.fspath(outputs_dir))
        self.training_phase = training_phase
        self.generate_on_save = generate_on_save
        self.flush_timeout_s = flush_timeout_s
        style = Style(
            callback=f"{__name__}.{type(self).__qualname__}",
            outputs_dir=self.outputs_dir,
            validate_schema=validate_schema,
        )
        self.writer = SidecarWriter(style)
        self._observer = _Observer(self)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin to observe the strategy's saves; also those after the fit."""
        self._observer.guard(self._observer.observe, trainer)


class _Observer:
    """What is told of one trainer's saves."""

    def __init__(self, callback: MetadataCallback) -> None:
        self.guard = Guard()
        self._callback = callback
        self._trainer: Any = None
        self._waiting: dict[str, _Saved] = {}
        """Until the end of the fit, where nothing is generated on save."""
        self._surroundings: dict[str, Plain] = {}

    def observe(self, trainer: Any) -> None:
        self._trainer = trainer
        observe_saves(trainer.strategy, self)
        self._surroundings = {
            "exp_name": self._callback.exp_name,
            "training.training_phase": self._callback.training_phase,
            "hydra_config_path": self.guard(hydra_config_path),
        }

    def __getstate__(self) -> dict[str, object]:
        return {"guard": self.guard, "_callback": self._callback, "_trainer": None, "_waiting": {}, "_surroundings": {}}

    # ---- SaveObserver --------------------------------------------------------------------------------------

    def saving(self, checkpoint: dict[str, Any], filepath: Any) -> _Saved | None:
        """On the training thread: some tens of microseconds."""
        if not self._trainer.is_global_zero:
            return None
        path = local_path(filepath)
        if path is None:
            self.guard.tell("remote", "checkpoints on remote filesystems get no metadata; the training goes on")
            return None
        if os.path.basename(path).startswith("."):
            return None  # Lightning's own temporary ones, of its learning rate and batch size finders
        known = self._surroundings | self._of_save(checkpoint) | (self.guard(self._of_saver) or {})
        module = self._trainer.lightning_module
        facts = TrainingFacts(
            known=_known(known) | (self.guard(known_parts, module) or {}),
            otherwise=self.guard(class_names, module) or {},
            metrics=self.guard(_metrics_of, self._trainer) or {},
        )
        return _Saved(path, facts, _identity(path))

    def saved(self, token: _Saved) -> None:
        if self._callback.generate_on_save:
            self._callback.writer.submit(token.path, token.facts, previous=token.previous)
        else:
            self._waiting[token.path] = token

    def removed(self, filepath: Any) -> None:
        path = local_path(filepath)
        if path is not None and self._trainer.is_global_zero:
            self._waiting.pop(path, None)
            self._callback.writer.forget(path)

    def ended(self) -> None:
        writer = self._callback.writer
        for token in self._waiting.values():
            writer.submit(token.path, token.facts, previous=token.previous)
        self._waiting.clear()
        if self._trainer.is_global_zero:
            for saver in self._trainer.checkpoint_callbacks:
                last = getattr(saver, "last_model_path", None)
                if last and os.path.islink(last):
                    writer.forget(last)  # a link now, and perhaps a file with metadata before
        writer.close(self._callback.flush_timeout_s)

    # ---- facts ---------------------------------------------------------------------------------------------

    def _of_save(self, checkpoint: dict[str, Any]) -> dict[str, Plain]:
        return {
            "training.epoch": _count(checkpoint.get("epoch")),
            "training.global_step": _count(checkpoint.get("global_step")),
            "training.max_epochs": _count(self._trainer.max_epochs),
            "wandb_run_id": self.guard(wandb_run_id, self._trainer.loggers),
        }

    def _of_saver(self) -> dict[str, Plain]:
        """How the callback that saves decides; nothing where the user saves."""
        saver = _saver_in_stack(self._trainer.checkpoint_callbacks)
        if saver is None:
            return {}
        monitor = getattr(saver, "monitor", None)
        return {
            "checkpointing.monitor": monitor,
            "checkpointing.mode": None if monitor is None else getattr(saver, "mode", None),
            "checkpointing.save_top_k": getattr(saver, "save_top_k", None),
            "checkpointing.save_last": getattr(saver, "save_last", None),
        }


def _saver_in_stack(savers: list[Any]) -> Any:
    """The checkpoint callback that is saving just now.

    Read from the stack: neither the strategy nor a Logger-less Trainer is told, and the callbacks' own lists of paths
    say nothing of saves on exceptions.
    """
    frame = sys._getframe(1)  # noqa: SLF001
    for _ in range(_MAX_FRAMES):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        if frame.f_code.co_argcount and frame.f_code.co_varnames[0] == "self":
            holder = frame.f_locals.get("self")
            for saver in savers:
                if saver is holder:
                    return saver
    return None


def _known(fields: dict[str, Plain]) -> dict[str, Plain]:
    """Without what is not known. That a saver monitors nothing is known."""
    return {name: value for name, value in fields.items() if value is not None or name.startswith("checkpointing.")}


def _metrics_of(trainer: Any) -> dict[str, Any]:
    copied: dict[str, Any] = {}
    for name, value in trainer.callback_metrics.items():
        with contextlib.suppress(Exception):  # one that cannot be read is not known; the others are
            copied[str(name)] = _copied(value)
    return copied


def _copied(value: Any) -> Any:
    """A metric as it is now: training goes on to change tensors in place. On a device it is not waited for."""
    device = getattr(value, "device", None)
    if device is None:
        return value
    return value.item() if device.type == "cpu" and value.numel() == 1 else value.detach().clone()


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _identity(path: str) -> FileIdentity | None:
    """Of the file that is about to be replaced. A directory keeps its identity while its files are replaced."""
    try:
        return None if os.path.isdir(path) else identity_of(os.stat(path))
    except OSError:
        return None
