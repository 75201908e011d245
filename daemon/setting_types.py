"""The types of settings: words that can be chosen, and values with units and ranges."""

import enum
from typing import Annotated

import pydantic
from pydantic import Field

ALL_ROOTS = "*"
"""In `required_keys`: what is demanded in every root."""


class Access(enum.StrEnum):
    """Who may read."""

    AUTO = "auto"
    """On loopback without a token if everyone on the machine may read the roots anyway; else with one."""
    TOKEN = "token"  # noqa: S105 - the name of a mode, not a secret
    """Always with a token."""


class Sidecars(enum.StrEnum):
    """Whether missing sidecars are written."""

    AUTO = "auto"
    OFF = "off"


class SidecarName(enum.StrEnum):
    """The name of a written sidecar; both are read."""

    LONG = "long"
    """`best.ckpt.metadata.yaml`"""
    SHORT = "short"
    """`best.metadata.yaml`"""


class LogFormat(enum.StrEnum):
    """The form of the log."""

    AUTO = "auto"
    """`console` on a terminal, else `json`."""
    CONSOLE = "console"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """The least severe event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class AccessLogged(enum.StrEnum):
    """Which requests the log tells of."""

    OFF = "off"
    ERRORS = "errors"
    """Those that were refused or failed."""
    ALL = "all"


def off_is_a_word(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false; true is then taken for `auto`."""
    return {False: "off", True: "auto"}[value] if isinstance(value, bool) else value


def all_or_off(value: object) -> object:
    """The same, with `all` for true."""
    return {False: "off", True: "all"}[value] if isinstance(value, bool) else value


def _strings(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _by_root(value: object) -> object:
    return {ALL_ROOTS: value} if isinstance(value, str | list | tuple) else value


Paths = Annotated[tuple[str, ...], pydantic.BeforeValidator(_strings)]
Words = Annotated[tuple[str, ...], pydantic.BeforeValidator(_strings)]
Keys = Annotated[dict[str, Words], pydantic.BeforeValidator(_by_root)]
"""Of state dicts, by root."""
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86400, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
"""More than none."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""Of 1."""
