"""Wire schema: the JSON schemas of the models of answers."""

import enum
from collections.abc import Iterable
from typing import Any

import pydantic
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from . import models


def schemas_of(names: Iterable[str], reference: str) -> dict[str, Any]:
    """The schemas of what `models` calls by these names, and of all that they refer to, by name.

    Args:
        names: attributes of `models`.
        reference: how schemas refer to each other, with `{model}` for a name.
    """
    wanted = list(names)
    adapters = [(name, "validation", pydantic.TypeAdapter(getattr(models, name))) for name in wanted]
    shown, rest = pydantic.TypeAdapter.json_schemas(
        adapters,  # type: ignore[arg-type]  # the mode is a literal
        ref_template=reference,
        schema_generator=_Generator,
    )
    schemas = {name: shown[(name, "validation")] for name in wanted}
    # A model refers to itself by its name; only unions stand for themselves.
    schemas = {name: schema for name, schema in schemas.items() if schema != {"$ref": reference.format(model=name)}}
    return dict(sorted(_without_titles(schemas | rest.get("$defs", {})).items()))


class _Generator(GenerateJsonSchema):
    """pydantic's, with the members of enumerations explained."""

    def enum_schema(self, schema: core_schema.EnumSchema) -> dict[str, Any]:
        """See `GenerateJsonSchema`."""
        shown = super().enum_schema(schema)
        cls: type[enum.Enum] = schema["cls"]
        docs = models.field_docs(cls)
        explained = {str(member.value): docs[member.name] for member in cls if member.name in docs}
        if explained:
            shown["x-enumDescriptions"] = explained  # as Redocly shows them
        return shown


def _without_titles(schema: Any) -> Any:
    """pydantic repeats each name as a title."""
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
        return {key: _without_titles(value) for key, value in kept.items()}
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema
