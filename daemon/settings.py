"""Settings: everything that can be set, with units and ranges; flag before environment before YAML file."""

import difflib
import enum
import hashlib
import math
import os
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticUndefined

from ckptd.catalog.description import RedactionRules
from ckptd.catalog.roots import DEFAULT_SUFFIXES, RootError, resolve_roots
from ckptd.validators.architectures import load_table
from ckptd.validators.inspection import Level

ENV_PREFIX = "CKPTD_"
CREDENTIAL_NAME = "ckptd.token"
"""File in `$CREDENTIALS_DIRECTORY` (systemd `LoadCredential=ckptd.token:…`) that serves as `token_file`."""
READ_CREDENTIAL_NAME = "ckptd.read-token"
"""The same for `read_token_file`."""

ALL_ROOTS = "*"
"""In `required_keys`: what is demanded in every root."""
_CONFIG_LIMIT_BYTES = 1 << 20
_PATH_LISTS = frozenset({"roots", "follow_links"})


class SettingsError(ValueError):
    """Raised when the settings cannot be used; nothing has been started. The command line exits with 2."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _off_is_a_word(value: object) -> object:
    # YAML 1.1 reads a bare `off` as false.
    return {False: "off", True: "auto"}[value] if isinstance(value, bool) else value


def _all_or_off(value: object) -> object:
    return {False: "off", True: "all"}[value] if isinstance(value, bool) else value


def _resolved(path: str) -> bytes:
    return os.path.realpath(os.fsencode(path))


def _strings(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], pydantic.BeforeValidator(_strings)]
Words = Annotated[tuple[str, ...], pydantic.BeforeValidator(_strings)]


def _by_root(value: object) -> object:
    return {ALL_ROOTS: value} if isinstance(value, str | list | tuple) else value


Keys = Annotated[dict[str, Words], pydantic.BeforeValidator(_by_root)]
"""Of state dicts, by root."""
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86400, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """All settings, validated. Built once (see `load_settings`) and handed down; nothing reads the environment later.

    Flags, environment variables, YAML keys, `--help` and the tables of the documentation are all made from
    these fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False, validate_default=True)

    roots: Annotated[Paths, Field(min_length=1)] = Field(
        ("outputs",), description="directories that are watched, any depth"
    )
    suffixes: Annotated[Words, Field(min_length=1)] = Field(
        DEFAULT_SUFFIXES, description="file names that end so are checkpoints: .ckpt, .pt, .pth, .safetensors"
    )
    follow_links: Paths = Field((), description="directories outside the roots that links may lead into")

    host: Annotated[str, Field(min_length=1)] = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8765, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    uds: str | None = Field(None, description="Unix socket to listen on, instead of host and port")
    port_file: str | None = Field(None, description="file that the port is written to once it is bound")
    state_dir: str = Field(
        default_factory=lambda data: default_state_dir(data.get("roots", ("outputs",)), os.environ),
        description="directory of the daemon's memory; deleting it is safe",
    )
    root_path: Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")] = Field(
        "", description="path prefix that a reverse proxy strips, such as /ckptd"
    )
    access: Access = Field(
        Access.AUTO, description="auto: a token unless loopback and world-readable roots; token: always a token"
    )
    allow_anonymous: bool = Field(False, description="let everyone who reaches the socket in, without a token")
    token_file: str | None = Field(None, description="file with the token; else one is generated in state_dir")
    read_token_file: str | None = Field(
        None, description="file with a token that may only read; beside a generated token one is generated as well"
    )
    uds_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = Field(
        "600", description="who may open uds, in octal: 600 its owner, 660 also its group, 666 everyone"
    )
    cors_origins: Words = Field((), description="origins that browsers may read from, such as https://studio.example")

    page: bool = Field(True, description="serve the page at /; off: / names the endpoints")
    page_streaming: bool = Field(
        True, description="the page listens to the live stream; off: it asks for the list page by page"
    )

    watch_step_ms: int = Field(5, ge=1, le=10_000, description="how often the watcher looks for new events, in ms")
    watch_debounce_ms: int = Field(50, ge=1, le=60_000, description="longest wait to group events, in ms")
    sweep_min_s: SomeSeconds = Field(10, description="least time between two sweeps of a tree, in seconds")
    sweep_cpu: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        0.02, description="share of one core that sweeps may take"
    )
    poll_s: SomeSeconds = Field(15, description="time between two looks at a network filesystem, in seconds")

    quiet_s: Seconds = Field(2, description="a format without an end mark is whole when unchanged for so many seconds")
    abandoned_s: SomeSeconds = Field(60, description="an incomplete file unchanged for so many seconds is invalid")

    sidecars: Annotated[Sidecars, pydantic.BeforeValidator(_off_is_a_word)] = Field(
        Sidecars.AUTO, description="auto: write missing .metadata.yaml files; off: write nothing beside checkpoints"
    )
    sidecar_name: SidecarName = Field(
        SidecarName.LONG, description="long: best.ckpt.metadata.yaml; short: best.metadata.yaml"
    )
    sidecar_delay_s: Seconds = Field(2, description="time given to a training to write its own sidecar, in seconds")
    export_index: bool = Field(True, description="write .checkpoint_index.json into each root")

    workers: int = Field(default_factory=_cores, ge=1, le=256, description="worker processes that parse files")
    worker_memory_mb: int = Field(1024, ge=64, le=1 << 20, description="memory limit of a worker, in MB")
    worker_timeout_s: SomeSeconds = Field(30, description="time limit of a worker for one file, in seconds")

    required_keys: Keys = Field(
        {},
        description="keys, or prefixes of keys, that every state dict must have; in the YAML file also by root: "
        "`/srv/outputs: [model.encoder]`",
    )
    redact: bool = Field(
        True, description="hide what looks like a password, a token or a key in configs and hyper-parameters"
    )
    redact_names: Words = Field((), description="further names of config keys whose values are hidden")
    architectures: str | None = Field(
        None, description="YAML file that adds architectures to the ones that are recognised"
    )

    verify: Level = Field(
        Level.CHECKSUM,
        description="how far checkpoints are verified in the background: checksum (every byte), weights (every value, "
        "needs torch); structure or none: no further than at arrival",
    )
    verify_mb_per_s: float = Field(
        200,
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="how fast the background verification reads at most, in MB/s; 0: as fast as the disk",
    )
    scrub_days: float = Field(
        30,
        ge=0,
        le=36_500,
        allow_inf_nan=False,
        description="age in days at which a verification is repeated, from the disk itself; 0: never",
    )

    list_cache_control: Annotated[str, Field(pattern=r"^[ -~]{1,200}$")] = Field(
        "no-cache", description="Cache-Control of lists; no-cache: keep, but ask each time whether it is still good"
    )
    coalesce_ms: int = Field(10, ge=0, le=10_000, description="how long changes are gathered before sending, in ms")
    heartbeat_s: SomeSeconds = Field(15, description="time between two heartbeats of the live stream, in seconds")
    max_listeners: int = Field(12_000, ge=1, le=1_000_000, description="live listeners at one time")
    max_connections: int = Field(
        16_384, ge=1, le=1_000_000, description="connections at one time; more are answered by 503, health excepted"
    )
    send_timeout_s: SomeSeconds = Field(30, description="a listener that takes nothing for so many seconds is closed")

    coverage_degraded: Share = Field(0.8, description="health is degraded when a smaller share has metadata")
    build_degraded_s: SomeSeconds = Field(5, description="health is degraded when the build took more seconds")

    log_format: LogFormat = Field(LogFormat.AUTO, description="console, json, or auto: by whether stderr is a terminal")
    log_level: LogLevel = Field(LogLevel.INFO, description="least severe event that is logged")
    access_log: Annotated[AccessLogged, pydantic.BeforeValidator(_all_or_off)] = Field(
        AccessLogged.ERRORS, description="requests that are logged: errors (refused or failed), all, or off"
    )
    sentry_dsn: str | None = Field(
        None, description="Sentry project that errors are reported to (needs sentry-sdk); else SENTRY_DSN"
    )
    wandb_project: str | None = Field(
        None, description="W&B project that the service's main figures are sent to (needs wandb)"
    )
    wandb_every_s: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = Field(
        60, description="time between two sets of figures for W&B, in seconds"
    )
    config: str | None = Field(None, description="YAML file with settings")

    @pydantic.field_validator("suffixes")
    @classmethod
    def _suffixes_are_suffixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for suffix in value:
            if not re.fullmatch(r"(\.[^./\0]+)+", suffix):
                raise ValueError(f"{suffix!r} is not a suffix such as .ckpt")
        return value

    @pydantic.field_validator("uds_mode", mode="before")
    @classmethod
    def _mode_is_octal(cls, value: object) -> object:
        # YAML 1.1 reads 0660 as the number 432 and 660 as itself: only a mode that was written as text is certain.
        if isinstance(value, int):
            raise ValueError('write it as text, such as "660"')
        return value

    @pydantic.field_validator("roots", "follow_links")
    @classmethod
    def _paths_are_not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not path or "\0" in path for path in value):
            raise ValueError("a path is empty")
        return value

    @pydantic.field_validator("required_keys")
    @classmethod
    def _keys_are_keys(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for key in (key for keys in value.values() for key in keys):
            if not key.strip(".") or key != key.strip() or "\n" in key:
                raise ValueError(f"{key!r} is not a key such as model.encoder")
        return value

    @pydantic.field_validator("sentry_dsn")
    @classmethod
    def _dsn_is_a_dsn(cls, value: str | None) -> str | None:
        # https://develop.sentry.dev/sdk/overview/#parsing-the-dsn
        if value is not None and not re.fullmatch(r"https?://[^/@\s]+@[^/@\s]+/(\S+/)?\d+", value):
            raise ValueError("it is not a DSN such as https://key@sentry.example/42")
        return value

    @pydantic.field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin such as https://studio.example:8443")
        return value

    @pydantic.field_validator(
        "state_dir", "uds", "port_file", "token_file", "read_token_file", "config", "architectures"
    )
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # Made absolute once: a later change of the working directory must not move the state.
        return None if value is None else os.path.abspath(os.path.expanduser(value))

    @pydantic.field_validator("architectures")
    @classmethod
    def _table_is_a_table(cls, value: str | None) -> str | None:
        # TableError is a ValueError: it names the file, the entry and what is wrong with it.
        if value is not None:
            load_table(value)
        return value

    def required_at(self, path: bytes) -> tuple[str, ...]:
        """The keys that are required of what lies at a path, absolute and resolved; of a whole root at its own."""
        named = (
            keys
            for name, keys in self.required_keys.items()
            if name == ALL_ROOTS or (path + b"/").startswith(_resolved(name).rstrip(b"/") + b"/")
        )
        return tuple(dict.fromkeys(key for keys in named for key in keys))

    @property
    def redaction(self) -> RedactionRules | None:
        """What nobody shall read in configs and hyper-parameters."""
        return RedactionRules(self.redact_names) if self.redact else None

    @pydantic.model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.allow_anonymous and self.access is Access.TOKEN:
            raise ValueError("allow_anonymous and access=token contradict each other: leave one of them out")
        if self.abandoned_s < self.quiet_s:
            raise ValueError(f"abandoned_s ({self.abandoned_s:g}) is below quiet_s ({self.quiet_s:g}): raise it")
        roots = set(map(_resolved, self.roots))
        for name in self.required_keys:
            if name != ALL_ROOTS and _resolved(name) not in roots:
                raise ValueError(f"required_keys names {name!r}, which is none of the roots: name one of them, or '*'")
        return self


def load_settings(
    flags: Mapping[str, Any], env: Mapping[str, str] | None = None, config_path: str | None = None
) -> Settings:
    """Combine flags, environment and configuration file, the first that names a setting wins.

    Args:
        flags: setting → value; None stands for "not given".
        env: the environment, by default the process's own. `CKPTD_ROOTS` and `CKPTD_FOLLOW_LINKS` separate paths
            by `:`, other lists by commas. An empty value counts as not given.
        config_path: YAML file; by default `flags["config"]`, then `CKPTD_CONFIG`.

    Raises:
        SettingsError: names each setting that cannot be used, its value, where it came from and what to do.
    """
    env = os.environ if env is None else env
    given = {name: value for name, value in flags.items() if value is not None}
    config_path = config_path or given.get("config") or env.get(f"{ENV_PREFIX}CONFIG") or None
    layers: list[tuple[dict[str, Any], str]] = [(given, "--{flag}"), (_from_env(env), f"{ENV_PREFIX}{{env}}")]
    if config_path is not None:
        layers.append((_from_file(config_path), config_path.replace("{", "{{").replace("}", "}}")))
        given["config"] = config_path
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, origin in layers:
        for name in layer.keys() - values.keys():
            values[name] = layer[name]
            origins[name] = origin.format(flag=name.replace("_", "-"), env=name.upper())
    _reject_unknown(values, origins)
    _fill_from_system(values, env)
    try:
        return Settings(**values)
    except pydantic.ValidationError as error:
        raise SettingsError(_problems(error.errors(), values, origins)) from None


def default_state_dir(roots: Iterable[str], env: Mapping[str, str]) -> str:
    """`$STATE_DIRECTORY` (systemd), else `$XDG_STATE_HOME/ckptd/<hash of the resolved roots>`.

    Raises:
        RootError: a root exists and is not a directory.
    """
    given = env.get("STATE_DIRECTORY")
    if given:
        return given.split(":")[0]  # systemd joins several by colons; ours is the first
    resolved, _ = resolve_roots(roots)
    names = b"\0".join(sorted(root.path for root in resolved))
    home = env.get("XDG_STATE_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "ckptd", hashlib.blake2b(names, digest_size=8).hexdigest())


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


# ---- inside ------------------------------------------------------------------------------------------------


def _doc(name: str, field: pydantic.fields.FieldInfo) -> SettingDoc:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        choices = tuple(str(choice.value) for choice in annotation)
    else:
        choices = ()
    is_list = typing.get_origin(annotation) is tuple or name == "required_keys"
    return SettingDoc(name, _shown_default(name, field), field.description or "", is_list, annotation is bool, choices)


def _shown_default(name: str, field: pydantic.fields.FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return {"workers": "cores", "state_dir": "by the roots"}[name]
    if isinstance(default, tuple):
        return " ".join(default) or "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None or default in ("", {}) else str(default)


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        text = env.get(ENV_PREFIX + name.upper())
        if not text or name == "config":
            continue
        if typing.get_origin(field.annotation) is tuple or name == "required_keys":
            # Paths by the system's own separator: Hydra puts commas into directory names.
            separator = os.pathsep if name in _PATH_LISTS else ","
            values[name] = tuple(part.strip() for part in text.split(separator) if part.strip())
        else:
            values[name] = text
    return values


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_CONFIG_LIMIT_BYTES + 1)
    except OSError as error:
        raise SettingsError([f"config: {path} cannot be read ({error.strerror}); name an existing file"]) from None
    if len(data) > _CONFIG_LIMIT_BYTES:
        raise SettingsError([f"config: {path} is larger than 1 MiB; it is not a settings file"])
    try:
        loaded = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise SettingsError([f"config: {path} is not valid YAML ({detail}); correct the file"]) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError([f"config: {path} holds a {type(loaded).__name__}; write `name: value` lines"])
    values = {str(name).replace("-", "_"): value for name, value in loaded.items() if value is not None}
    if "config" in values:
        raise SettingsError([f"config: {path} names another config; give the final file by --config"])
    return values


def _reject_unknown(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    problems = []
    for name in sorted(values.keys() - Settings.model_fields.keys()):
        close = difflib.get_close_matches(name, Settings.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else "see `ckptd serve --help` for the settings"
        problems.append(f"{name}: there is no such setting (from {origins[name]}); {hint}")
    if problems:
        raise SettingsError(problems)


def _fill_from_system(values: dict[str, Any], env: Mapping[str, str]) -> None:
    credentials = env.get("CREDENTIALS_DIRECTORY")
    if credentials:
        for name, credential in (("token_file", CREDENTIAL_NAME), ("read_token_file", READ_CREDENTIAL_NAME)):
            path = os.path.join(credentials, credential)
            if name not in values and os.path.exists(path):
                values[name] = path
    if "sentry_dsn" not in values and env.get("SENTRY_DSN"):
        values["sentry_dsn"] = env["SENTRY_DSN"]
    roots = values.get("roots", Settings.model_fields["roots"].default)
    roots = (roots,) if isinstance(roots, str) else roots
    if not isinstance(roots, tuple | list) or not all(isinstance(root, str) and root for root in roots):
        return  # the validation says what is wrong with them
    try:
        state_dir = default_state_dir(roots, env)
    except (RootError, ValueError, OSError) as error:
        raise SettingsError([str(error)]) from None
    values.setdefault("state_dir", state_dir)


def _problems(errors: Iterable[ErrorDetails], values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    problems = []
    for error in errors:
        reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not error["loc"]:
            problems.append(reason)
            continue
        name = str(error["loc"][0])
        if name not in values:
            continue  # a default that could not be computed because of another error
        field = Settings.model_fields[name]
        value, origin = values[name], origins.get(name, "the system")
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        default = _shown_default(name, field)
        problems.append(
            f"{name}: {value!r} (from {origin}) cannot be used: {reason}; {field.description} (default: {default})"
        )
    return problems
