"""Real checkpoints, described and ready to be compared."""

import os
from pathlib import Path
from typing import Any

import msgspec
import torch

from ckptd.catalog.compare import Attribute, AttributeSection, Comparison, Side, compare
from ckptd.catalog.compare_tensors import TensorSelection
from ckptd.catalog.describe import describe_checkpoint
from ckptd.catalog.entry import Health, Identities, make_record, metadata_source
from ckptd.catalog.roots import Root
from ckptd.validators.inspection import Level


def weights(seed: int = 0, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """A state dict of three tensors and what is changed in it."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        "encoder.weight": torch.randn(4, 3, generator=generator),
        "encoder.bias": torch.randn(4, generator=generator),
        "head.weight": torch.randn(2, 4, generator=generator),
    }
    return state | {name.replace("__", "."): tensor for name, tensor in changed.items()}


def save(path: Path, state: dict[str, torch.Tensor], **more: Any) -> Path:
    """A checkpoint with these weights under `state_dict`, and more beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, **more}, path)
    return path


def side(file: Path, root: Path, level: Level = Level.STRUCTURE, **fields: Any) -> Side:
    """A file as it is compared, with any field of its entry overridden."""
    description = describe_checkpoint(str(file), root=str(root), level=level)
    record = make_record(
        Root(os.fsencode(root)),
        os.fsencode(file.relative_to(root)),
        description,
        Health.VALID if description.inspection.is_valid else Health.INVALID,
        identities=Identities(file=description.inspection.identity),
        metadata_source=metadata_source(description.sidecar),
    )
    return Side(msgspec.structs.replace(record.entry, **fields), description)


def compared(root: Path, *paths: Path, level: Level = Level.STRUCTURE, **selection: Any) -> Comparison:
    """Files beneath `root`, compared."""
    return compare([side(path, root, level) for path in paths], TensorSelection(**selection))


def row(section: AttributeSection, name: str) -> Attribute:
    """The row of that name."""
    (found,) = (row for row in section.rows if row.name == name)
    return found


def changes(comparison: Comparison) -> dict[str, str]:
    """Tensor, by its name in its state dict → what became of it, for each checkpoint but the first."""
    return {row.name.removeprefix("state_dict."): "/".join(row.changes) for row in comparison.tensors.rows}
