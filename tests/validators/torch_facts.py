"""What torch itself says of tensors that it has loaded, in the words of an inspection."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ckptd.validators import Inspection

__all__ = ["TensorFacts", "assert_agree", "described_tensors", "said_by_torch"]


class TensorFacts(NamedTuple):
    """One tensor; None for what torch does not say of its kind."""

    dtype: str
    shape: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    numel: int
    nbytes: int | None
    requires_grad: bool


def said_by_torch(tensor: torch.Tensor) -> TensorFacts:
    """Ask torch; nested tensors have no shape, sparse ones neither strides nor a size in bytes."""
    plain = tensor.layout == torch.strided and not tensor.is_nested
    return TensorFacts(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=None if tensor.is_nested else tuple(tensor.shape),
        stride=tuple(tensor.stride()) if plain else None,
        numel=tensor.numel(),
        nbytes=tensor.nbytes if plain or tensor.is_nested else None,
        requires_grad=tensor.requires_grad,
    )


def described_tensors(inspection: Inspection, role: str = "weights") -> dict[str, TensorFacts]:
    """The same as the inspection says it."""
    found = {}
    for info in inspection.tensors:
        if info.role == role:
            numel = 1
            for side in info.shape:
                numel *= side
            found[info.name] = TensorFacts(info.dtype, info.shape, info.stride, numel, info.nbytes, info.requires_grad)
    return found


def assert_agree(described: Mapping[str, TensorFacts], loaded: Mapping[str, torch.Tensor]) -> None:
    """Assert that names, their order and everything that torch says are the same."""
    assert list(described) == list(loaded)
    for name, tensor in loaded.items():
        said = said_by_torch(tensor)
        mine = described[name]
        unsaid = {field: None for field, value in said._asdict().items() if value is None}
        assert mine._replace(**unsaid) == said, name
