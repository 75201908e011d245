"""What a checkpoint says of its tensors and beside them, put together into an Inspection; one way for all formats."""

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from . import facts, fingerprint, training
from .checks.instantiator import find_instantiators
from .checks.structure import check_structure, limited
from .errors import Corrupt
from .findings import finding
from .inspection import Format, Inspection, Safety, TensorInfo
from .plain import clip
from .scalars import ScalarReader
from .storages import Storages, data_checksums
from .tensors import TensorTable


def describe_value(value: Any, storages: Storages, judged: Inspection) -> tuple[Inspection, TensorTable | None]:
    """Add to `judged` all that an unpickled value says of itself.

    Args:
        value: plain data and stand-ins.
        storages: the data that its tensors refer to.
        judged: what is known so far.

    Returns:
        The inspection, and the tensors where they could be found.
    """
    try:
        tensors = facts.find_tensors(value)
    except Corrupt as error:
        found = finding(error.code, error.message)
        return msgspec.structs.replace(judged, findings=(*judged.findings, found)), None
    return describe_tensors(tensors, value if isinstance(value, dict) else {}, storages, judged), tensors.table


def describe_tensors(tensors: facts.Tensors, top: dict[Any, Any], storages: Storages, judged: Inspection) -> Inspection:
    """Add to `judged` what is said of the tensors, and what stands beside them in the checkpoint's top level `top`."""
    instantiators = find_instantiators(top)
    findings = [*judged.findings, *instantiators]
    findings += limited((problem.code, problem.message) for problem in tensors.problems)
    findings += check_structure(tensors.table, storages)
    weights = tensors.of("weights")
    if tensors.model_class is not None and judged.format is not Format.TORCHSCRIPT:
        message = (
            f"a whole {clip(tensors.model_class)} was pickled, not its state dict: loading it needs that class's code"
        )
        findings.append(finding("pickle.whole_module", message))
    # A module without parameters is whole as well; so is a program whose weights were frozen into constants.
    if not weights and tensors.model_class is None and judged.format is not Format.TORCHSCRIPT:
        findings.append(finding("state_dict.missing", "no dictionary of tensors was found in the checkpoint"))
    has_problems = any(f.code in ("tensor.missing_storage", "tensor.out_of_bounds") for f in findings)
    counted = facts.weight_facts(weights)
    scalars = ScalarReader(storages)
    epoch, global_step = training.progress(top, scalars)
    hyper_parameters = training.hyper_parameters(top, scalars)
    return msgspec.structs.replace(
        judged,
        safety=Safety.UNSAFE if instantiators else judged.safety,
        tensors=tuple(_tensor_infos(tensors, storages)),
        has_state_dict=bool(weights),
        model_class=judged.model_class if tensors.model_class is None else clip(tensors.model_class),
        n_parameters=counted.n_parameters,
        parameters_by_part=counted.parameters_by_part,
        weights_bytes=counted.weights_bytes,
        dtypes=counted.dtypes,
        optimizer_bytes=facts.bytes_of(tensors.of("optimizer")),
        epoch=epoch,
        global_step=global_step,
        logged_step=training.logged_step(top, scalars),
        lightning_version=training.lightning_version(top),
        hyper_parameters=hyper_parameters,
        callbacks=training.callbacks(top, scalars),
        metrics=training.metrics(top, scalars),
        content_id=None if has_problems else _content_id(storages, weights),
        findings=tuple(findings),
    )


def _tensor_infos(tensors: facts.Tensors, storages: Storages) -> Iterator[TensorInfo]:
    table = tensors.table
    dtypes = [dtype.name for dtype in table.dtypes]
    sizes = [numel * dtype.itemsize for numel, dtype in zip(table.numels, table.dtypes, strict=True)]
    roles = itertools.chain.from_iterable(itertools.repeat(s.role, len(s.table)) for s in tensors.segments)
    stored = [None if size < 0 else size for size in storages.sizes(table.keys)]
    checksums = data_checksums(storages, table.keys)
    columns = (table.names, dtypes, table.shapes, table.strides, table.keys, table.offsets, sizes, roles, table.grads)
    infos = map(TensorInfo, *columns, stored, checksums)
    return itertools.compress(infos, [not hidden for hidden in table.hidden]) if any(table.hidden) else infos


def _content_id(storages: Storages, weights: list[facts.Segment]) -> str | None:
    # With several state dicts in one file (`generator_state_dict`, …) their keys are part of the names.
    if len(weights) == 1:
        return fingerprint.content_id(storages, [(weights[0].table, weights[0].relative_names)])
    return fingerprint.content_id(storages, [(segment.table, segment.table.names) for segment in weights])
