"""Untrusted YAML and JSON → plain data: bounded in size, depth and nodes, without tags, anchors or aliases.

A sidecar or a config is a stranger's file. The events of the YAML parser are consumed one by one, so a limit stops
the work where it is reached, and no constructor of PyYAML ever runs.
"""

import json
import math
import re

import yaml

from ckptd.validators.inspection import Plain

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 50_000

_Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT64_MAX = (1 << 63) - 1
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_RESOLVER = yaml.resolver.Resolver()
_IMPLICIT = (True, False)
_TAG = "tag:yaml.org,2002:"
_TRUE = frozenset({"yes", "true", "on"})


class DocumentError(ValueError):
    """Raised when a YAML or JSON document cannot be read, or asks for more than a document may."""


def load_document(data: bytes, *, is_json: bool) -> Plain:
    """Read one document as plain data (None, bool, int, float, str, lists, str-keyed dicts).

    Text that only looks like a number keeps its spelling: dates, times (`10:20:30`), numbers with leading zeros,
    integers beyond 64 bits, `.inf` and `.nan` come back as strings, so that nothing is lost and JSON can say it all.
    Interpolations (`${...}`) are plain strings.

    Raises:
        DocumentError: not YAML or JSON, several documents, above `MAX_BYTES`, `MAX_DEPTH` or `MAX_NODES`, or it
            uses tags, anchors or aliases.
    """
    if len(data) > MAX_BYTES:
        raise DocumentError(f"larger than {MAX_BYTES} bytes")
    return _load_json(data) if is_json else _load_yaml(data)


# ---- JSON ------------------------------------------------------------------------------------------------------


def _load_json(data: bytes) -> Plain:
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_int=_json_int, parse_float=_json_float, parse_constant=str)
        _check_size(value)
        if "\\u" in text:  # an escaped half of a surrogate pair is a string that no encoder takes
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError as error:
        raise DocumentError(f"nested deeper than {MAX_DEPTH} levels") from error
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"not JSON: {error}") from error
    return value


def _check_size(value: Plain) -> None:
    level, depth, nodes = [value], 0, 0
    while level:
        nodes += len(level)
        depth += 1
        if nodes > MAX_NODES:
            raise DocumentError(f"more than {MAX_NODES} values")
        children = [item for item in level if isinstance(item, dict | list)]
        if children and depth > MAX_DEPTH:
            raise DocumentError(f"nested deeper than {MAX_DEPTH} levels")
        level = [inner for item in children for inner in (item.values() if isinstance(item, dict) else item)]


def _json_int(text: str) -> int | str:
    return _bounded_int(text)


def _json_float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


# ---- YAML ------------------------------------------------------------------------------------------------------


def _load_yaml(data: bytes) -> Plain:
    builder = _Builder()
    try:
        for event in yaml.parse(data, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DocumentError(f"not YAML: {line}{error.problem}") from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise DocumentError(f"not YAML: {str(error).splitlines()[0]}") from error
    return builder.root


class _Builder:
    """Builds plain data from parser events with an explicit stack: no recursion for a stranger to drive."""

    def __init__(self) -> None:
        self.root: Plain = None
        self._documents = 0
        self._nodes = 0
        self._open: list[tuple[list[Plain] | dict[str, Plain], str | None]] = []
        """The containers around the current place, each with the key under which its next value goes."""

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._refusal(event, "a second document follows")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.NodeEvent):
            self._take_node(event)

    def _take_node(self, event: yaml.NodeEvent) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._refusal(event, f"more than {MAX_NODES} values")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refusal(event, "anchors and aliases are not accepted")
        if getattr(event, "tag", None) is not None:
            raise self._refusal(event, f"tags are not accepted: {event.tag!r}")  # type: ignore[attr-defined]
        if isinstance(event, yaml.ScalarEvent):
            self._put(event, event.value if not event.implicit[0] else _scalar(event.value), event.value)
            return
        if len(self._open) >= MAX_DEPTH:
            raise self._refusal(event, f"nested deeper than {MAX_DEPTH} levels")
        container: list[Plain] | dict[str, Plain] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._put(event, container, None)
        self._open.append((container, None))

    def _put(self, event: yaml.Event, value: Plain, text: str | None) -> None:
        if not self._open:
            self.root = value
            return
        container, key = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif key is not None:
            container[key] = value
            self._open[-1] = (container, None)
        elif text is None:
            raise self._refusal(event, "a key must be plain text")
        else:
            self._open[-1] = (container, text)

    @staticmethod
    def _refusal(event: yaml.Event, why: str) -> DocumentError:
        line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
        return DocumentError(line + why)


def _scalar(text: str) -> Plain:
    resolved = _RESOLVER.resolve(yaml.ScalarNode, text, _IMPLICIT)  # type: ignore[no-untyped-call]
    tag = str(resolved).removeprefix(_TAG)
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in _TRUE
    if tag == "int":
        return _bounded_int(text.replace("_", ""), text)
    if tag == "float" and ":" not in text:
        return _finite_float(text)
    return text


def _finite_float(text: str) -> float | str:
    try:
        number = float(text.replace("_", ""))
    except ValueError:  # `.inf`, `.nan`
        return text
    return number if math.isfinite(number) else text


def _bounded_int(digits: str, text: str | None = None) -> int | str:
    """The integer, or its text where it is no plain decimal (octal, `1:30`) or does not fit 64 bits."""
    spelled = digits if text is None else text
    if len(digits) > 20 or not _DECIMAL.match(digits):
        return spelled
    number = int(digits)
    return number if -_INT64_MAX <= number <= _INT64_MAX else spelled
