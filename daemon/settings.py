"""Settings: everything that can be set, with units and ranges."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from ckptd.catalog.description import RedactionRules
from ckptd.catalog.roots import DEFAULT_SUFFIXES, resolve_roots
from ckptd.validators.architectures import load_table
from ckptd.validators.inspection import Level

from .setting_types import (
    ALL_ROOTS,
    Access,
    AccessLogged,
    Keys,
    LogFormat,
    LogLevel,
    Paths,
    Seconds,
    Share,
    SidecarName,
    Sidecars,
    SomeSeconds,
    Words,
    all_or_off,
    off_is_a_word,
)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(BaseModel):
    """All settings, validated. Built once (see `settings_loader`) and handed down; nothing reads the environment later.

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

    sidecars: Annotated[Sidecars, pydantic.BeforeValidator(off_is_a_word)] = Field(
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
    access_log: Annotated[AccessLogged, pydantic.BeforeValidator(all_or_off)] = Field(
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


def _resolved(path: str) -> bytes:
    return os.path.realpath(os.fsencode(path))
