"""The catalogue of finding codes: for each one its severity and what a person can do about it.

Codes are part of the wire and of the command line's output; extend the table, never change a string.
"""

import enum

import msgspec


class Severity(enum.StrEnum):
    """How bad a finding is. Only errors make a checkpoint invalid."""

    ERROR = "error"
    """The checkpoint must not be used."""
    WARNING = "warning"
    """The checkpoint can be used; a person should look."""
    INFO = "info"
    """Worth knowing, nothing to do."""


class Finding(msgspec.Struct, frozen=True, gc=False):
    """One thing found about one checkpoint."""

    code: str
    severity: Severity
    message: str
    remedy: str


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

_REWRITE = "restore the file from a copy, or save it again from the training"

CATALOGUE: dict[str, tuple[Severity, str]] = {
    "archive.incomplete": (
        _E,
        "wait for the writer to finish; if none is running, the save was cut short: delete or restore the file",
    ),
    "archive.truncated": (_E, f"bytes are missing from the archive: {_REWRITE}"),
    "archive.malformed": (_E, f"the archive contradicts itself: {_REWRITE}"),
    "archive.ambiguous": (
        _E,
        "different readers would see different contents: do not load it; save it again from a trusted source",
    ),
    "archive.trailing_data": (
        _E,
        "bytes follow the end of the archive: two files were joined or the tail was not cleared; "
        "restore the file from a copy",
    ),
    "archive.checksum_mismatch": (_E, f"the stored bytes changed after they were written: {_REWRITE}"),
    "archive.unverifiable": (
        _I,
        "the file carries no checksums: torch.save was told so (set_crc32_options(False)), or its format has none; "
        "a file that torch.save writes by default makes silent corruption visible",
    ),
    "archive.bit_rot": (
        _E,
        "the bytes changed while size and time did not: check the disk, restore the file from a copy",
    ),
    "archive.holes": (
        _I,
        "expected where a tool saved space on zeros (cp --sparse=always, rsync -S); after a crash or a full disk, "
        "compare with a copy",
    ),
    "format.unknown": (_E, "not a format that ckptd knows; if it is a checkpoint, save it with torch.save"),
    "format.unsupported": (
        _E,
        "ckptd recognises this format but cannot describe it; if you trust where it came from, load it with what wrote "
        "it and save the contents with torch.save",
    ),
    "format.not_a_checkpoint": (_E, "fetch the real file again; this is something else under its name"),
    "pickle.malformed": (_E, f"the pickled part of the checkpoint cannot be parsed: {_REWRITE}"),
    "pickle.dangerous_name": (
        _W,
        "do not load it with weights_only=False: loading would run this code; ask where the file came from",
    ),
    "pickle.unknown_name": (
        _I,
        "loading with weights_only=True will refuse unless these classes are allowed by "
        "torch.serialization.add_safe_globals",
    ),
    "pickle.whole_module": (
        _W,
        "loading it imports and runs the class's own code: save model.state_dict() instead, "
        "and load this file only if you trust where it came from",
    ),
    "torchscript.program": (
        _I,
        "torch.jit.load runs the compiled program in it; torch.load(weights_only=True) refuses the file",
    ),
    "pickle.second_stream": (
        _E,
        "data follows the end of the pickle, where no reader looks: do not load it; save it again",
    ),
    "pickle.unread_record": (
        _I,
        "nothing was proved about them: do not open them with another reader than torch.load",
    ),
    "pickle.limits": (
        _E,
        "parsing was stopped at a limit of memory, time or size; no real checkpoint needs as much. "
        "If yours does, raise worker_memory_mb or worker_timeout_s",
    ),
    "tensor.missing_storage": (_E, f"a tensor's data is not in the archive: {_REWRITE}"),
    "tensor.out_of_bounds": (_E, f"a tensor reaches beyond its data: {_REWRITE}"),
    "state_dict.missing": (
        _E,
        "the file holds no model weights under state_dict, model_state_dict or at its top level",
    ),
    "state_dict.required_keys": (_E, "keys that your settings require are missing: check the model's code version"),
    "architecture.unknown": (_I, "nothing to do; the architecture table can be extended in the settings"),
    "weights.non_finite": (_E, "the training diverged before this save: use an earlier checkpoint"),
    "weights.all_zero": (_I, "expected for fresh biases; else check that the weights were initialised and saved"),
    "shards.incomplete": (_E, "not all parts of the sharded checkpoint are there: wait, or save it again"),
    "shards.unopened": (
        _I,
        "these parts were judged by presence and size alone; run `ckptd validate` on them one by one to read them",
    ),
    "shards.order": (_W, "the parts are newer than their metadata: the save may not have ended"),
    "metadata.missing": (_I, "the daemon writes one, or run `ckptd metadata`"),
    "metadata.stale": (
        _W,
        "the sidecar describes an earlier file of this name; delete it, or run `ckptd metadata --repair`",
    ),
    "metadata.invalid": (_W, "fix or delete it, and a new one is written"),
    "metadata.unwritable": (
        _W,
        "the sidecar could not be written here; the metadata is kept in the daemon's state. "
        "Give the daemon write access to have it beside the file",
    ),
    "metadata.other_digest": (
        _W,
        "the file was written anew since, or altered when it was copied: compare it with the original; "
        "if it is as it should be, delete the metadata file",
    ),
    "metadata.orphan": (_W, "the sidecar's checkpoint is gone; delete the sidecar if nobody needs it"),
    "config.missing": (
        _W,
        "keep .hydra/ or config.yaml with the run",
    ),
    "config.invalid": (_W, "fix it; nothing of it is used until then"),
    "link.dangling": (_W, "remove the link or restore its target"),
    "run.failed": (_W, "a .FAILURE file lies beside the checkpoint: the run did not end well"),
    "worker.crashed": (
        _E,
        "the process that parsed this file died; the file is hostile or damaged, do not load it",
    ),
    "file.read_error": (_E, "check the disk, and restore from a copy; it is read again with each sweep"),
    "file.unreadable": (_E, "check the permissions and the disk; it is looked at again when it changes"),
}
"""code → (severity, remedy)."""


def finding(code: str, message: str) -> Finding:
    """Make the finding `code` with `message`, which says what was found and where.

    Raises:
        KeyError: `code` is not in the catalogue.
    """
    severity, remedy = CATALOGUE[code]
    return Finding(code=code, severity=severity, message=message, remedy=remedy)
