"""MetadataCallback for the transformers Trainer: every `checkpoint-N` gets its metadata from the training."""

import glob
import os
import re
import sys
from typing import Any

from transformers import TrainerCallback

from ckptd.validators.formats.trainer import read_state
from ckptd.validators.inspection import Plain

from .facts import Style, TrainingFacts
from .guarded import Guard
from .module_parts import class_names, known_parts
from .surroundings import hydra_config_path
from .writer import FLUSH_S, SidecarWriter

# transformers/trainer_utils.py, `PREFIX_CHECKPOINT_DIR`
_SIDECAR = re.compile(r"(checkpoint-\d+)\.metadata\.yaml")


class MetadataCallback(TrainerCallback):
    """Writes `checkpoint-N.metadata.yaml` beside every checkpoint of a Trainer, with the metrics of that very step.

    `on_save` is called when the directory is complete on the process that calls; where other processes still write
    their shards, the metadata waits for them. Where `save_total_limit` deletes a checkpoint, its metadata goes with it.
    The work is done off the training thread, on world process zero; what goes wrong is one warning.

    The metrics are those that `state.log_history` has of the step that was saved: an evaluation that ran at another
    step was of other weights. Durations, speeds and the learning rate are no metrics of a checkpoint.
    """

    def __init__(
        self,
        exp_name: str | None = None,
        outputs_dir: str | os.PathLike[str] | None = None,
        training_phase: str | None = "training",
        validate_schema: bool = True,
        *,
        digest: bool = False,
        flush_timeout_s: float = FLUSH_S,
    ) -> None:
        """Args:
        exp_name: Name of the experiment; by default that of the config, else of a directory above the checkpoint.
        outputs_dir: Configs and experiment names are looked for beneath it only.
        training_phase: Written as it is: `training`, `finetuning`, ….
        validate_schema: Write nothing that does not read back as it was.
        digest: Read every byte of the checkpoint right after the save, from memory as a rule, and record the digest:
            safetensors files carry no checksums, so nothing else would show that one was altered before the daemon
            first read it.
        flush_timeout_s: How long the end of a training waits for metadata that is not written yet.
        """
        super().__init__()
        self.exp_name = exp_name
        self.training_phase = training_phase
        self.digest = digest
        self.flush_timeout_s = flush_timeout_s
        style = Style(
            callback=f"{__name__}.{type(self).__qualname__}",
            outputs_dir=None if outputs_dir is None else os.path.abspath(os.fspath(outputs_dir)),
            validate_schema=validate_schema,
        )
        self.writer = SidecarWriter(style)
        self.guard = Guard()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer has written a checkpoint, and deleted those that are too many."""
        if state.is_world_process_zero:
            self.guard(self._saved, args, state, kwargs.get("model"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last checkpoints were deleted; wait for the metadata of those that are left."""
        if state.is_world_process_zero:
            self.guard(self._forget_deleted, os.path.abspath(args.output_dir))
            self.writer.close(self.flush_timeout_s)

    # ---- inside --------------------------------------------------------------------------------------------

    def _saved(self, args: Any, state: Any, model: Any) -> None:
        path = _checkpoint_path(os.path.abspath(args.output_dir), state.global_step)
        if path is None:
            self.guard.tell("missing", f"no checkpoint-{state.global_step} was found beneath {args.output_dir}")
            return
        known = self._known(args, state) | (self.guard(known_parts, model) or {})
        facts = TrainingFacts(
            known=known,
            otherwise=self.guard(class_names, model) or {},
            metrics=_metrics_of(state),
            read_digest=self.digest,
        )
        self.writer.submit(path, facts)
        self._forget_deleted(os.path.dirname(path))

    def _known(self, args: Any, state: Any) -> dict[str, Plain]:
        monitor, mode = _monitor_of(args)
        known: dict[str, Plain] = {
            "exp_name": self.exp_name,
            "training.global_step": state.global_step,
            "training.training_phase": self.training_phase,
            "training.max_epochs": _whole_epochs(args),
            "hydra_config_path": self.guard(hydra_config_path),
            "wandb_run_id": self.guard(_wandb_run_id),
        }
        keeping: dict[str, Plain] = {
            "checkpointing.monitor": monitor,
            "checkpointing.mode": mode,
            "checkpointing.save_top_k": args.save_total_limit,
        }
        return {field: value for field, value in known.items() if value is not None} | keeping

    def _forget_deleted(self, run_directory: str) -> None:
        """Remove the metadata of checkpoints that the Trainer deleted, of earlier runs into the directory as well."""
        names = set(os.listdir(run_directory))
        for match in filter(None, map(_SIDECAR.fullmatch, names)):
            if match[1] not in names:
                self.writer.forget(os.path.join(run_directory, match[1]))


def _checkpoint_path(output_dir: str, step: int) -> str | None:
    """The directory that was saved; a hyper-parameter search saves into a directory of each trial."""
    path = os.path.join(output_dir, f"checkpoint-{step}")
    if os.path.isdir(path):
        return path
    trials = glob.glob(os.path.join(glob.escape(output_dir), "*", f"checkpoint-{step}"))
    return max(trials, key=os.path.getmtime, default=None)


def _metrics_of(state: Any) -> dict[str, float]:
    # As they would be read from the state that lies in the checkpoint.
    at_step = [dict(entry) for entry in state.log_history if entry.get("step") == state.global_step]
    return read_state({"global_step": state.global_step, "log_history": at_step}).metrics


def _monitor_of(args: Any) -> tuple[str | None, str | None]:
    monitor = args.metric_for_best_model
    if monitor is None:
        return None, None
    if not monitor.startswith("eval_"):
        monitor = f"eval_{monitor}"  # transformers/trainer.py, `_determine_best_metric`
    return monitor, "max" if args.greater_is_better else "min"


def _whole_epochs(args: Any) -> int | None:
    """None where the training ends at a number of steps, or within an epoch."""
    epochs = float(args.num_train_epochs)
    return int(epochs) if args.max_steps <= 0 and epochs.is_integer() else None


def _wandb_run_id() -> str | None:
    run = getattr(sys.modules.get("wandb"), "run", None)  # the Trainer's own integration has started it, if anybody
    return None if run is None else str(run.id)
