"""Tensors: the tensor table of one checkpoint; filtered, sorted and cut into pieces."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.datastructures import QueryParams

from ckptd.catalog.description import Description
from ckptd.catalog.entry import CheckpointId
from ckptd.validators.inspection import TensorInfo

from .parameter_types import choice, choices, integer, read_parameters, text

MAX_LIMIT = 10_000
ROLES = ("weights", "optimizer", "other")
_SORT_KEYS: dict[str, Callable[[TensorInfo], Any]] = {
    "name": lambda tensor: tensor.name,
    "role": lambda tensor: ROLES.index(tensor.role) if tensor.role in ROLES else None,
    "dtype": lambda tensor: tensor.dtype,
    "nbytes": lambda tensor: tensor.nbytes,
    "storage_nbytes": lambda tensor: tensor.storage_nbytes,
    "rank": lambda tensor: len(tensor.shape),
}
_DESCENDING = frozenset(("nbytes", "storage_nbytes", "rank"))
TENSORS = (
    text("prefix", "only tensors whose name begins with it", min_length=1, examples=("state_dict.encoder.",)),
    choices("role", "one or more, separated by commas: the part of the checkpoint that a tensor belongs to", ROLES),
    choice("sort_by", "by default as the checkpoint has them; nulls come last", tuple(_SORT_KEYS)),
    choice("sort_order", "by default text ascending, numbers descending", ("asc", "desc")),
    integer("limit", "tensors in one answer", high=MAX_LIMIT, default=1000),
    integer("offset", "tensors to pass over before", low=0, default=0),
)
"""Of `GET /checkpoints/{id}/tensors`."""


class TensorQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which tensors of a table are wanted, and in which order."""

    limit: int
    offset: int
    prefix: str = ""
    role: str | None = None
    """One or more of `ROLES`, separated by commas."""
    sort_by: str | None = None
    sort_order: str | None = None


class TensorTable(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the tensor table of one checkpoint."""

    id: CheckpointId
    total: int
    """Tensors that the query fits."""
    nbytes: int
    """What all of those need; memory that several share counts for each."""
    limit: int
    offset: int
    tensors: Sequence[TensorInfo]


def parse_tensors(parameters: QueryParams) -> TensorQuery:
    """The query of `GET /checkpoints/{id}/tensors`.

    Raises:
        ProblemError: 400, naming the parameter, its value and what it may be.
    """
    return TensorQuery(**read_parameters(parameters, TENSORS))


def table_of(checkpoint_id: CheckpointId, description: Description | None, query: TensorQuery) -> TensorTable:
    """The tensors that a query asks for; none where no description is kept."""
    tensors: Sequence[TensorInfo] = () if description is None else description.tensors
    if query.prefix:
        tensors = [tensor for tensor in tensors if tensor.name.startswith(query.prefix)]
    if query.role is not None:
        roles = {role.strip() for role in query.role.split(",")}
        tensors = [tensor for tensor in tensors if tensor.role in roles]
    listed = _ordered(tensors, query)[query.offset : query.offset + query.limit]
    return TensorTable(
        id=checkpoint_id,
        total=len(tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        limit=query.limit,
        offset=query.offset,
        tensors=listed,
    )


def _ordered(tensors: Sequence[TensorInfo], query: TensorQuery) -> Sequence[TensorInfo]:
    """Nulls last in both orders; ties stay as the checkpoint has them."""
    if query.sort_by is None:
        return tensors[::-1] if query.sort_order == "desc" else tensors
    key = _SORT_KEYS[query.sort_by]
    descending = query.sort_order == "desc" if query.sort_order else query.sort_by in _DESCENDING
    known = sorted((tensor for tensor in tensors if key(tensor) is not None), key=key, reverse=descending)
    return known + [tensor for tensor in tensors if key(tensor) is None]
