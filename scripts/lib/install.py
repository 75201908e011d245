"""scripts/install: set ckptd up as a service, bring it up to date, or remove it; every step can be repeated."""

import argparse
import contextlib
import glob
import json
import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out

from install_package import install_package, interpreter, is_ours
from install_plan import (
    CONFIG_DIRECTORY,
    CREDENTIALS,
    DEFAULT_PREFIX,
    DROP_IN,
    REPO,
    SYSUSERS,
    UNIT_DIRECTORY,
    UNITS,
    Setup,
    config_text,
    drop_in_text,
    optional,
    unit_files,
    unreachable_for_others,
)
from installed import alone, enabled_setups, group_of, is_active, is_outdated, prefix_of, refused_access
from machine import InstallError, UsageError, has_group, has_user, run
from starting import start, tell_page

_PRINT_ROOTS = """
import json, sys
from ckptd.daemon.settings_loader import SettingsError, load_settings
try:
    print(json.dumps(load_settings({}, {"STATE_DIRECTORY": "/nonexistent"}, sys.argv[1]).roots))
except SettingsError as error:
    sys.exit(str(error))
"""
_WOULD = {
    "kept": "would keep",
    "wrote": "would write",
    "removed": "would remove",
    "ran": "would run",
    "installed": "would install",
}


class Installer:
    """Does each step, or only says so."""

    def __init__(self, setup: Setup, *, destdir: str, dry_run: bool) -> None:
        self.setup = setup
        self.dry_run = dry_run
        self._destdir = destdir

    # ---- steps ---------------------------------------------------------------------------------------------

    def write(self, path: str, text: str, *, keep: bool = False) -> None:
        """Put a file in place, unless it is there with these contents, or at all and is to be kept."""
        target = Path(self._destdir + path)
        if target.exists() and (keep or target.read_text(encoding="utf-8") == text):
            self.tell("kept", path)
            return
        self.tell("wrote", path)
        if not self.dry_run:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.new")
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o644)
            temporary.replace(target)

    def remove(self, path: str) -> None:
        """Remove a file or a tree, if it is there."""
        target = Path(self._destdir + path)
        if not os.path.lexists(target):
            return
        self.tell("removed", path)
        if self.dry_run:
            return
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()

    def run(self, *command: str, tolerate: bool = False) -> str:
        """Run a command that changes the machine; returns what it printed.

        Raises:
            InstallError: it failed, and that is not tolerated.
        """
        self.tell("ran", " ".join(command))
        if self.dry_run:
            return ""
        return run(*command, tolerate=tolerate)

    def start(self, unit: str) -> None:
        """Start a unit; a service that runs is restarted where something of it is newer than it.

        Raises:
            InstallError: it did not start.
        """
        is_running = not self.dry_run and is_active(unit)
        if is_running and unit.endswith(".service") and is_outdated(unit, self.setup.parts):
            verb = "restart"
        else:
            verb = "start"  # the socket is never restarted: it is what keeps the connections
        self.tell("ran", f"systemctl {verb} {unit}")
        if not self.dry_run:
            start(verb, unit)

    def tell(self, what: str, which: str) -> None:
        """One line for each step."""
        print(f"{_WOULD[what] if self.dry_run else what} {which}", flush=True)

    def install_package(self, wheel: str | None) -> None:
        """Have the prefix hold what the checkout, or a wheel, holds."""
        prefix = self.setup.prefix
        if self.dry_run:
            self.tell("installed", f"ckptd from {wheel or REPO} in {prefix}")
        elif install_package(prefix, wheel):
            self.tell("installed", f"ckptd in {prefix}")
        else:
            self.tell("kept", f"{prefix}: it holds this version already")

    def _there(self, pattern: str) -> list[str]:
        """What lies on the machine under a pattern."""
        return [path.removeprefix(self._destdir) for path in sorted(glob.glob(self._destdir + pattern))]

    # ---- the whole -----------------------------------------------------------------------------------------

    def install(self, roots: list[str], port: int | None, *, start: bool) -> None:
        """Everything but the package, in the order in which it is needed."""
        setup = self.setup
        for path, text in unit_files(setup.prefix):
            self.write(path, text)
        if not self._destdir and setup.owner is None:
            self.run("systemd-sysusers", SYSUSERS)
        self.write(setup.config, config_text(roots, port), keep=True)
        self.write(setup.drop_in, drop_in_text(setup, self.roots(roots), interpreter(setup.prefix)))
        if self._destdir:
            return
        self.run("systemctl", "daemon-reload")
        units = [unit for unit in (setup.socket, setup.service) if unit is not None]
        if start:
            self._start(units)
        # Only now: what did not start is not set up, and no later run has to bring it up to date.
        self.run("systemctl", "enable", "--quiet", *units)
        if start and not self.dry_run:
            tell_page(setup)

    def _start(self, units: list[str]) -> None:
        setup = self.setup
        if setup.socket is not None and not self.dry_run and not is_active(setup.socket):
            self.run("systemctl", "stop", setup.service)  # it may hold the port itself
        for unit in units:
            self.start(unit)

    def roots(self, given: list[str]) -> list[str]:
        """The roots that the configuration names, as far as it can be read here."""
        python = f"{self.setup.prefix}/bin/python"
        config = self._destdir + self.setup.config
        if not os.path.exists(config) or not os.path.exists(python):
            return given or ["/srv/outputs"]
        roots = [
            os.path.abspath(root)
            for root in json.loads(run(python, "-I", "-c", _PRINT_ROOTS, config, shown=f"reading {config}"))
        ]
        for root in given:
            if root not in roots:
                note(f"{config} was there already and does not name {root}; add it under roots, and run this again")
        for root in roots:
            if not os.path.isdir(root):
                note(f"{root} is not there; the service waits for it, and shows no checkpoints of it until then")
            elif not (self._destdir or self.dry_run):
                self._note_access(root)
        return roots

    def _note_access(self, root: str) -> None:
        refused = refused_access(self.setup, root, writes=not self.setup.read_only)
        if refused is not None:
            unread = "cannot read" in refused
            then = "nothing of it is shown" if unread else "metadata is kept in the state, not beside the checkpoints"
            note(f'{refused}: until it can, {then}; docs/operations.md, "Whose files", has three ways')

    def uninstall(self, *, purge: bool) -> None:
        """Everything but what people wrote and what ckptd learned; with `purge` that too."""
        if not self._destdir:
            instances = re.findall(
                r"^(ckptd@\S+\.service)",
                run("systemctl", "list-units", "--all", "--plain", "--no-legend", "ckptd@*", tolerate=self.dry_run),
                re.M,
            )
            there = [unit for unit in UNITS if os.path.exists(f"{UNIT_DIRECTORY}/{unit}") and "@." not in unit]
            for unit in (
                *(u for u in there if u.endswith(".socket")),
                *instances,
                *(u for u in there if u.endswith(".service")),
            ):
                self.run("systemctl", "disable", "--quiet", "--now", unit, tolerate=True)
        for path in [*(f"{UNIT_DIRECTORY}/{unit}" for unit in UNITS), SYSUSERS]:
            self.remove(path)
        for path in self._there(f"{UNIT_DIRECTORY}/ckptd*.service.d/{DROP_IN}"):
            self.remove(path)
            directory = self._destdir + os.path.dirname(path)
            if not self.dry_run and not os.listdir(directory):
                os.rmdir(directory)
        if is_ours(f"{self._destdir}{self.setup.prefix}"):
            self.remove(self.setup.prefix)
        # What people wrote: settings, changes of units (`systemctl edit`), tokens; and what ckptd learned.
        left = [f"{UNIT_DIRECTORY}/ckptd*.d", CREDENTIALS, CONFIG_DIRECTORY, "/var/lib/ckptd*"]
        for path in [path for pattern in left for path in self._there(pattern)]:
            if purge:
                self.remove(path)
            else:
                self.tell("kept", f"{path} (--purge removes it)")
        if not self._destdir:
            self.run("systemctl", "daemon-reload")
            if purge and has_user("ckptd"):
                self.run("userdel", "ckptd", tolerate=True)


# ---- telling -----------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    """Something to know that is no reason to stop."""
    print(f"note: {text}", flush=True)


# ---- the command line --------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(prog="scripts/install", description=__doc__)
    made.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="a tree to watch (default: /srv/outputs); again for more",
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument("--group", help="the group that owns the trees; the service becomes a member of it")
    which.add_argument("--owner", help="an instance of its own for this user: ckptd@OWNER")
    which.add_argument("--read-only", action="store_true", help="write nothing beside the checkpoints: ckptd-readonly")
    made.add_argument("--port", type=port_number, help="port of an --owner's instance (default: 8765)")
    made.add_argument("--prefix", help=f"where ckptd is installed (default: where it is, else {DEFAULT_PREFIX})")
    made.add_argument("--wheel", help="install this wheel instead of building the checkout")
    made.add_argument("--no-socket", action="store_true", help="the service opens its port itself, as ckptd.yaml says")
    made.add_argument("--no-start", action="store_true", help="enable it, and leave the start to you")
    made.add_argument("--uninstall", action="store_true", help="remove everything but settings and state")
    made.add_argument("--purge", action="store_true", help="with --uninstall: settings, state and user too")
    made.add_argument("--dry-run", action="store_true", help="only say what would be done")
    made.add_argument(
        "--destdir", default="", metavar="DIR", help="write the units and settings below DIR, and touch nothing else"
    )
    return made


def port_number(text: str) -> int:
    """A TCP port that can be named in settings."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; name one from 1 to 65535")
    return int(text)


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot end well, before anything is touched.

    Raises:
        UsageError, ValueError: an argument.
        InstallError: the machine.
    """
    _check_arguments(options)
    if options.destdir:
        return
    if not options.dry_run:
        _check_machine()
    if options.uninstall:
        return
    if options.owner is not None and not has_user(options.owner):
        raise UsageError(f"--owner {options.owner}: there is no such user")
    if options.group is not None and not has_group(options.group):
        raise UsageError(f"--group {options.group}: there is no such group; groupadd {options.group} makes it")
    if options.wheel is not None and not os.path.isfile(options.wheel):
        raise UsageError(f"--wheel {options.wheel}: there is no such file")
    closed = unreachable_for_others(sys.executable)
    if closed is not None and not options.dry_run:
        raise InstallError(
            f"{sys.executable} lies below {closed}, which the service's user cannot enter; name another Python, "
            "such as PYTHON=/usr/bin/python3"
        )


def _check_arguments(options: argparse.Namespace) -> None:
    if not os.path.isabs(options.prefix) or os.path.normpath(options.prefix) in ("/", "/usr", "/usr/local", "/opt"):
        raise UsageError(f"--prefix {options.prefix}: name a directory of its own, such as {DEFAULT_PREFIX}")
    if re.search(r"[\s%\"'\\]", options.prefix):
        raise UsageError(f"--prefix {options.prefix}: neither blanks, quotes nor % can stand in a unit's paths")
    if options.purge and not options.uninstall:
        raise UsageError("--purge goes with --uninstall")
    for root in options.root:
        optional(os.path.abspath(root))
    if options.port is not None and options.owner is None:
        raise UsageError(
            "--port goes with --owner; the others listen where their socket unit says: systemctl edit ckptd.socket"
        )


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise InstallError(
            "a service of the machine is set up by root (sudo scripts/install); without root, scripts/run serves"
        )
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        raise InstallError("this machine was not booted by systemd; run `ckptd serve` under its own supervisor")


def setups_for(options: argparse.Namespace) -> list[Setup]:
    """What is asked for; where nothing says which, what is set up on this machine already."""
    asked = Setup(options.owner, options.read_only, options.group, not options.no_socket, options.prefix)
    says_which = (options.owner, options.read_only, options.group, options.no_socket, options.root, options.uninstall)
    if not (any(says_which) or options.destdir) and os.path.isdir("/run/systemd/system"):
        setups = enabled_setups(options.prefix) or [asked]
    else:
        setups = [asked]
    return [setup._replace(group=setup.group or group_of(options.destdir, setup)) for setup in setups]


def install(setups: list[Setup], options: argparse.Namespace) -> None:
    """The package, and every set-up; other services that run are restarted where the package is newer than they."""
    roots = [os.path.abspath(root) for root in options.root]
    installers = [Installer(setup, destdir=options.destdir, dry_run=options.dry_run) for setup in setups]
    if not options.destdir:
        installers[0].install_package(options.wheel)
    for installer in installers:
        installer.install(roots, options.port, start=not options.no_start)
    if options.destdir or options.dry_run or options.no_start:
        return
    done = {setup.service for setup in setups}
    for other in enabled_setups(options.prefix):
        if other.service not in done and is_active(other.service):
            Installer(other, destdir="", dry_run=False).start(other.service)


def main() -> int:
    """Returns the exit code: 0 fine, 2 usage, 3 the machine."""
    options = parser().parse_args()
    options.destdir = os.path.abspath(options.destdir) if options.destdir else ""
    options.prefix = os.path.normpath(options.prefix or prefix_of(options.destdir) or DEFAULT_PREFIX)
    try:
        check(options)
        with contextlib.nullcontext() if options.destdir or options.dry_run else alone():
            setups = setups_for(options)
            if options.uninstall:
                Installer(setups[0], destdir=options.destdir, dry_run=options.dry_run).uninstall(purge=options.purge)
            else:
                install(setups, options)
    except (UsageError, ValueError) as error:
        print(f"scripts/install: {error}", file=sys.stderr)
        return 2
    except InstallError as error:
        print(f"scripts/install: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"scripts/install: {error.strerror}: {error.filename}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
