"""Flags made from the settings, so that flags, environment, file and documentation have one source."""

import argparse
import os
from collections.abc import Collection
from typing import Any

from ..setting_docs import setting_docs
from ..settings import Settings
from ..settings_loader import SettingsError, load_settings
from .exits import USAGE, CommandError

_SWITCH_WORDS = frozenset({"true", "false", "on", "off", "yes", "no"})
_METAVARS = {
    "roots": "DIR",
    "suffixes": "SUFFIX",
    "follow_links": "DIR",
    "cors_origins": "ORIGIN",
    "required_keys": "KEY",
    "redact_names": "NAME",
}


def add_setting_flags(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """Add a flag for each setting, or for those in `names`; absent flags are None, for the other sources to fill."""
    group = parser.add_argument_group("settings (flag, then CKPTD_* in the environment, then --config)")
    for doc in setting_docs():
        if names is not None and doc.name not in names:
            continue
        options: dict[str, Any] = {
            "dest": doc.name,
            "default": None,
            "help": f"{doc.description} (default: {doc.default})".replace("%", "%%"),
        }
        if doc.is_bool:
            options["action"] = argparse.BooleanOptionalAction
        elif doc.is_list:
            options |= {"nargs": "+", "action": "extend", "metavar": _METAVARS[doc.name]}
        elif doc.choices:
            options |= {"metavar": "{" + ",".join(doc.choices) + "}"}
        else:
            options["metavar"] = doc.name.rpartition("_")[2].upper()
        group.add_argument("--" + doc.name.replace("_", "-"), **options)


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings, from parsed flags and the process's environment.

    Raises:
        CommandError: a setting cannot be used; exit code 2.
    """
    flags = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    positional = getattr(options, "positional_roots", None)
    words = [word for word in positional or () if word.lower() in _SWITCH_WORDS and not os.path.exists(word)]
    if words:
        raise CommandError(
            f"{words[0]!r} is taken for a root, and there is none of that name: flags that switch something take no "
            "value, write --export-index or --no-export-index",
            USAGE,
        )
    if positional:
        flags["roots"] = [*positional, *(flags.get("roots") or [])]
    try:
        return load_settings(flags)
    except SettingsError as error:
        raise CommandError("; ".join(error.problems), USAGE) from None
