"""Which architecture do the tensors' names and shapes show.

A state dict lists the tensors of one module next to each other, and so does every sorted list. The modules at one level
are therefore found as runs, by a handful of comparisons each, not by walking over all names; the keys that a family
expects are then looked up. What nobody expects is never looked at: a file of 20,000 names costs as much as one of 200.
"""

import collections
import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from ..architectures import PARTS, Layout, Loop, Shape, Table, Variant
from ..findings import Finding, finding
from ..inspection import Inspection, Recognition
from ..plain import clip
from .required_keys import judge_required

MANY_TENSORS = 16
"""A model with no more of them is a toy or a probe: that no family knows it is not worth saying."""
MAX_BLOCKS = 2_000
MAX_MODULES = 256
"""At one level; a list of more is a flat one."""
MAX_DEPTH = 12
MAX_NODES = 64
SORTED_UP_TO = 100_000
"""Names that are put in order where they come in none; more are hostile."""
SIMILAR = 0.02
"""Two families whose confidences differ by less are both possible: then nobody knows."""
HEAD_TENSORS = 12
"""Tensors, matrices at most, that may lie beside an encoder that is the whole model: a classifier, a loss's buffers."""

_name_of, _shape_of = operator.attrgetter("name"), operator.attrgetter("shape")

Run = tuple[int, int]
"""From, to before: a slice of the names."""


class Recognized(NamedTuple):
    """What the tensors show."""

    parts: tuple[Recognition, ...]
    """The whole model first."""
    architecture: str | None
    """The model's name, where it is known as a whole."""


class _Node(NamedTuple):
    prefix: str
    modules: dict[str, Run]
    """What is at this level, and where the names below it are."""
    n_tensors: int


class _Match(NamedTuple):
    layout: Layout
    node: _Node
    name: str
    family: str
    confidence: float
    explained: int
    evidence: tuple[str, ...]


def judge_architecture(inspection: Inspection, required: Sequence[str], table: Table) -> Inspection:
    """Add what the names and shapes of the weights say of the model, and whether the required keys are there.

    Args:
        inspection: with its tensors.
        required: keys of the state dict, or prefixes of such (`model.encoder`).
        table: what is known (see `architectures`).
    """
    weights = [tensor for tensor in inspection.tensors if tensor.role == "weights"]
    if not weights:
        nothing_there = any(found.code == "state_dict.missing" for found in inspection.findings)
        return msgspec.structs.replace(inspection, architecture_valid=False if required and nothing_there else None)
    names, shapes = list(map(_name_of, weights)), list(map(_shape_of, weights))
    recognized = recognize(names, shapes, table)
    valid, missing = judge_required(names, required)
    # Of a damaged file there are other things to say.
    findings = judge_recognition(recognized, len(names)) if inspection.is_valid else []
    return msgspec.structs.replace(
        inspection,
        architecture=recognized.architecture,
        architecture_valid=valid,
        recognized=recognized.parts,
        findings=(*inspection.findings, *missing, *findings) if missing or findings else inspection.findings,
    )


def recognize(names: Sequence[str], shapes: Sequence[tuple[int, ...]], table: Table) -> Recognized:
    """Recognise a model, or parts of it. What is of no family in the table is not named: unknown is no guess.

    Args:
        names: keys of a state dict, or of one inside a checkpoint (`state_dict.…`).
        shapes: of the tensors, in the same order.
        table: what is known (see `architectures`).
    """
    names, shapes, nodes = _nodes(names, shapes, table)
    candidates = [(node, layouts) for node in nodes if (layouts := _possible(node, table))]
    if not candidates:
        return Recognized((), None)
    tensors = dict(zip(names, shapes, strict=True))
    matches = [match for node, layouts in candidates if (match := _best(node, layouts, tensors)) is not None]
    parts = sorted(map(_as_part, matches), key=lambda part: PARTS.index(part.part))
    whole = next((m for m in matches if m.layout.part == "encoder" and _is_whole(m, names, shapes)), None)
    if whole is not None:
        model = msgspec.structs.replace(_as_part(whole), part="model")
        return Recognized((model,), model.name)
    named = _combination(parts, table)
    if named is not None:
        return Recognized((named, *parts), named.name)
    return Recognized(tuple(parts), None)


def judge_recognition(recognized: Recognized, n_tensors: int) -> list[Finding]:
    """What there is to say of a model that no family knows."""
    if recognized.parts or n_tensors <= MANY_TENSORS:
        return []
    return [finding("architecture.unknown", f"its {n_tensors:,} weights fit no architecture in the table")]


# ---- modules ---------------------------------------------------------------------------------------------------


def _nodes(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], table: Table
) -> tuple[Sequence[str], Sequence[tuple[int, ...]], list[_Node]]:
    """The levels at which a model may begin; the names sorted if they were in no order."""
    found = _walk(names, table, ordered=False)
    if found is None and len(names) <= SORTED_UP_TO:
        order = sorted(range(len(names)), key=names.__getitem__)
        names, shapes = [names[i] for i in order], [shapes[i] for i in order]
        found = _walk(names, table, ordered=True)
    return names, shapes, found or []


def _walk(names: Sequence[str], table: Table, *, ordered: bool) -> list[_Node] | None:
    """The top level, and those below modules that only hold another; None if a module's names are not together."""
    nodes: list[_Node] = []
    waiting = collections.deque([("", (0, len(names)), 0)])
    while waiting and len(nodes) < MAX_NODES:
        prefix, (start, end), depth = waiting.popleft()
        modules: dict[str, Run] = {}
        for head, run in itertools.islice(_modules(names, start, end, len(prefix)), MAX_MODULES + 1):
            if head in modules and not ordered:
                return None
            modules[head] = max(run, modules.get(head, run), key=_length)
        if len(modules) > MAX_MODULES:
            continue
        nodes.append(_Node(prefix, modules, end - start))
        if depth == MAX_DEPTH:
            continue
        for head, run in modules.items():
            if (head in table.wrappers or len(modules) == 1) and len(names[run[0]]) > len(prefix) + len(head):
                waiting.append((f"{prefix}{head}.", run, depth + 1))
    return nodes


def _length(run: Run) -> int:
    return run[1] - run[0]


def _modules(names: Sequence[str], start: int, end: int, skip: int) -> Iterator[tuple[str, Run]]:
    """(module, run of the names below it) of what follows the first `skip` characters."""
    while start < end:
        name = names[start]
        dot = name.find(".", skip)
        if dot < 0:
            yield name[skip:], (start, start + 1)
            start += 1
        else:
            behind = _end_of_run(names, start, end, name[: dot + 1])
            yield name[skip:dot], (start, behind)
            start = behind


def _end_of_run(names: Sequence[str], at: int, end: int, prefix: str) -> int:
    """Where the names that begin with `prefix` end, found by doubling steps and then halving the last one."""
    step = 1
    low, high = at, at + 1
    while high < end and names[high].startswith(prefix):
        low = high
        step *= 2
        high = low + step
    high = min(high, end)
    while high - low > 1:
        middle = (low + high) // 2
        if names[middle].startswith(prefix):
            low = middle
        else:
            high = middle
    return high


def _possible(node: _Node, table: Table) -> list[Layout]:
    modules = node.modules.keys()
    found = modules & table.by_head.keys()
    return [layout for head in found for layout in table.by_head[head] if layout.heads <= modules]


# ---- one family ------------------------------------------------------------------------------------------------


def _best(node: _Node, layouts: list[Layout], tensors: dict[str, tuple[int, ...]]) -> _Match | None:
    """The one layout that fits; nothing where two families fit about as well."""
    matches = [match for layout in layouts if (match := _match(node, layout, tensors)) is not None]
    matches.sort(key=lambda match: -match.confidence)
    if not matches:
        return None
    best = matches[0]
    rivals = [m for m in matches if m.name != best.name and best.confidence - m.confidence < SIMILAR]
    return None if rivals else best


def _match(node: _Node, layout: Layout, tensors: dict[str, tuple[int, ...]]) -> _Match | None:
    prefix = node.prefix
    values: dict[str, int] = {}
    for key, shape in layout.keys:
        given = tensors.get(prefix + key)
        if given is None or not _fits(given, shape, values):
            return None
    if any(prefix + key in tensors for key in layout.never) or not _has_any(node, layout, tensors):
        return None
    found = expected = layout.n_keys
    below = sum(_count(node, module) for module in layout.subtrees)
    found, expected = found + below, expected + below
    blocks: list[int] = []
    allowed = sum(_count(node, module) for module in layout.optional_subtrees)
    allowed += sum(prefix + key in tensors for key, _ in layout.optional)
    for loop in layout.loops:
        n_blocks, n_found, n_expected, n_allowed = _count_blocks(prefix + loop.before, loop, tensors, values)
        if not n_blocks:
            return None
        blocks.append(n_blocks)
        found, expected, allowed = found + n_found, expected + n_expected, allowed + n_allowed
    owned = node.n_tensors if layout.closed else sum(_count(node, head) for head in layout.owned)
    confidence = found / (expected + max(0, owned - found - allowed))
    if confidence < layout.threshold:
        return None
    named = _name(layout, blocks, values)
    if named is None:
        return None
    evidence = _evidence(layout, node, blocks, values, found, expected)
    return _Match(layout, node, *named, round(confidence, 4), found + allowed, evidence)


def _has_any(node: _Node, layout: Layout, tensors: dict[str, tuple[int, ...]]) -> bool:
    module = node.prefix[:-1].rpartition(".")[2]
    return not layout.any_of or any(
        module == key[1:] if key[0] == "^" else node.prefix + key in tensors for key in layout.any_of
    )


def _count(node: _Node, module: str) -> int:
    return _length(node.modules.get(module, (0, 0)))


def _count_blocks(
    before: str, loop: Loop, tensors: dict[str, tuple[int, ...]], values: dict[str, int]
) -> tuple[int, int, int, int]:
    """(blocks, expected keys found with their shapes, expected keys, optional keys found)."""
    probe = loop.rows[0][0]
    end = loop.start
    while end < MAX_BLOCKS and f"{before}{end}{probe}" in tensors:
        end += 1
    blocks = [f"{before}{number}" for number in range(loop.start, end)]
    found = sum(_fitting([tensors.get(block + after) for block in blocks], shape, values) for after, shape in loop.rows)
    allowed = sum([block + after in tensors for after, _ in loop.optional for block in blocks])
    return len(blocks), found, len(loop.rows) * len(blocks), allowed


def _fitting(given: list[tuple[int, ...] | None], shape: Shape, values: dict[str, int]) -> int:
    """How many of the same tensor in all blocks have its shape; the first one tells what names stand for."""
    if shape.exact is not None:
        return given.count(shape.exact)
    if shape.tail is not None:
        rank, tail = len(shape.dims), shape.tail
        free = rank - len(tail)
        return sum([one is not None and len(one) == rank and one[free:] == tail for one in given])
    if not given or not _fits(given[0], shape, values):
        return 0
    exact = _resolved(shape, values)
    return sum(_fits(one, shape, values) for one in given) if exact is None else given.count(exact)


def _fits(given: tuple[int, ...] | None, shape: Shape, values: dict[str, int]) -> bool:
    """Whether a tensor has the shape. A name without a value takes the side that stands in its place."""
    if shape.exact is not None or given is None:
        return given == shape.exact and given is not None
    if len(given) < len(shape.dims) or (len(given) > len(shape.dims) and not shape.open_ended):
        return False
    for side, dim in zip(given, shape.dims, strict=False):
        if isinstance(dim, tuple):
            name, factor = dim
            if values.setdefault(name, side // factor if side % factor == 0 else -1) * factor != side:
                return False
        elif dim is not None and side != dim:
            return False
    return True


def _resolved(shape: Shape, values: dict[str, int]) -> tuple[int, ...] | None:
    """All sides as numbers; None where any will do."""
    if shape.exact is not None or shape.open_ended or None in shape.dims:
        return shape.exact
    return tuple(values[dim[0]] * dim[1] if isinstance(dim, tuple) else dim or 0 for dim in shape.dims)


def _name(layout: Layout, blocks: list[int], values: dict[str, int]) -> tuple[str, str] | None:
    """(name, family); None where the family is not known without one of its variants."""
    for variant in layout.variants:
        if _is_variant(variant, blocks, values):
            # A number that nothing told (its tensor was missing) stays in braces.
            return re.sub(r"\{([a-z]+)\}", lambda told: str(values.get(told[1], told[0])), variant.name), variant.family
    return (layout.family, layout.family) if layout.generic else None


def _is_variant(variant: Variant, blocks: list[int], values: dict[str, int]) -> bool:
    if variant.blocks and list(variant.blocks) != blocks:
        return False
    return all(values.get(name) in allowed for name, allowed in variant.values.items())


def _evidence(
    layout: Layout, node: _Node, blocks: list[int], values: dict[str, int], found: int, expected: int
) -> tuple[str, ...]:
    """What was found, in words."""
    where = f" below {clip(node.prefix[:-1], 100)}" if node.prefix else ""
    lines = [f"{found:,} of {expected:,} expected keys and shapes{where}"]
    modules = [*layout.subtrees, *(module for module in layout.optional_subtrees if module in node.modules)]
    if modules:
        lines.append(f"modules {', '.join(modules)}")
    if layout.keys:
        lines.append(f"key {layout.keys[0][0]}")
    if blocks:
        counted = ", ".join(f"{n} x {loop.before}#" for n, loop in zip(blocks, layout.loops, strict=True))
        lines.append(f"blocks {counted}")
    if values:
        lines.append(f"sizes {', '.join(f'{name} {value}' for name, value in values.items())}")
    return tuple(lines)


# ---- the model -------------------------------------------------------------------------------------------------


def _as_part(match: _Match) -> Recognition:
    return Recognition(
        part=match.layout.part,
        name=match.name,
        family=match.family,
        confidence=match.confidence,
        evidence=match.evidence,
    )


def _is_whole(match: _Match, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether what lies beside a part is no more than a head of a few matrices."""
    if len(names) - match.explained > HEAD_TENSORS:
        return False
    owned = sorted(match.node.modules[head] for head in match.layout.owned if head in match.node.modules)
    at = 0
    for start, end in [*owned, (len(names), len(names))]:
        if any(len(shapes[i]) > 2 for i in range(at, start)):
            return False
        at = end
    return True


def _combination(parts: list[Recognition], table: Table) -> Recognition | None:
    """The name of the model that has these parts; nothing where a part is there twice in two ways."""
    by_part: dict[str, set[str]] = {}
    for one in parts:
        by_part.setdefault(one.part, set()).update((one.name, one.family))
    several = any(len({one.name for one in parts if one.part == part}) > 1 for part in by_part)
    for combination in () if several else table.combinations:
        if all(by_part.get(part, set()) & set(names) for part, names in combination.parts.items()):
            used = [one for one in parts if one.part in combination.parts]
            return Recognition(
                part="model",
                name=combination.name,
                family=combination.name,
                confidence=min(one.confidence for one in used),
                evidence=tuple(f"{one.part} {one.name}" for one in parts),
            )
    return None
