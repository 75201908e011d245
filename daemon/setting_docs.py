"""Settings as flags, `--help` and the documentation show them."""

import enum
import typing

import pydantic
from pydantic_core import PydanticUndefined

from .settings import Settings


class SettingDoc(typing.NamedTuple):
    """One row of the settings table."""

    name: str
    default: str
    description: str
    is_list: bool
    is_bool: bool
    choices: tuple[str, ...]


def setting_docs() -> list[SettingDoc]:
    """Every setting as flags, `--help` and the documentation show it, in the order of the model."""
    return [_doc(name, field) for name, field in Settings.model_fields.items()]


def _doc(name: str, field: pydantic.fields.FieldInfo) -> SettingDoc:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        choices = tuple(str(choice.value) for choice in annotation)
    else:
        choices = ()
    shown, is_list = shown_default(name, field), is_list_setting(name, field)
    return SettingDoc(name, shown, field.description or "", is_list, annotation is bool, choices)


def is_list_setting(name: str, field: pydantic.fields.FieldInfo) -> bool:
    """Whether a flag may be given several times, and an environment variable holds several values."""
    return typing.get_origin(field.annotation) is tuple or name == "required_keys"


def shown_default(name: str, field: pydantic.fields.FieldInfo) -> str:
    """The default of a setting in a word."""
    default = field.default
    if default is PydanticUndefined:
        return {"workers": "cores", "state_dir": "by the roots"}[name]
    if isinstance(default, tuple):
        return " ".join(default) or "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None or default in ("", {}) else str(default)
