"""Loading settings: flag before environment before YAML file; whatever cannot be used is named with its origin."""

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
import yaml
from pydantic_core import ErrorDetails

from ckptd.catalog.roots import RootError

from .setting_docs import is_list_setting, shown_default
from .settings import Settings, default_state_dir

ENV_PREFIX = "CKPTD_"
CREDENTIAL_NAME = "ckptd.token"
"""File in `$CREDENTIALS_DIRECTORY` (systemd `LoadCredential=ckptd.token:…`) that serves as `token_file`."""
READ_CREDENTIAL_NAME = "ckptd.read-token"
"""The same for `read_token_file`."""
_CONFIG_LIMIT_BYTES = 1 << 20
_PATH_LISTS = frozenset({"roots", "follow_links"})


class SettingsError(ValueError):
    """Raised when the settings cannot be used; nothing has been started. The command line exits with 2."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


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


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        text = env.get(ENV_PREFIX + name.upper())
        if not text or name == "config":
            continue
        if is_list_setting(name, field):
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
        default = shown_default(name, field)
        problems.append(
            f"{name}: {value!r} (from {origin}) cannot be used: {reason}; {field.description} (default: {default})"
        )
    return problems
