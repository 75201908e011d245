"""ckptd as scripts/install sets it up, on a machine that a real systemd runs."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import tempfile
import textwrap
import tomllib
from typing import Any

import httpx
import pytest

from tests.service.daemons import DEADLINE_S, eventually
from tests.service.systemd_machine import CannotBoot, Machine

REPO = pathlib.Path(__file__).parents[2]
PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
STATE = "/var/lib/ckptd"
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def cannot(why: str) -> None:
    """Skip the test; where what it needs is no option, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must be able to boot systemd: {why}")
    pytest.skip(f"systemd cannot be booted here: {why}")


def booted(directory: pathlib.Path, *shared: pathlib.Path) -> contextlib.AbstractContextManager[Machine]:
    """A machine that has booted, or a skipped test."""
    machine = Machine(directory, shared)
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(machine)
    except CannotBoot as error:
        cannot(str(error))
    return _Entered(machine, stack)


class _Entered(contextlib.AbstractContextManager[Machine]):
    def __init__(self, machine: Machine, stack: contextlib.ExitStack) -> None:
        self._machine = machine
        self._stack = stack

    def __enter__(self) -> Machine:
        return self._machine

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@functools.cache
def system_python() -> str:
    """A Python that every user can execute, with venv; the one that scripts/install will choose."""
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        python = f"/usr/bin/{name}"
        code = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
        if os.path.exists(python) and subprocess.run([python, "-I", "-c", code], check=False).returncode == 0:
            return python
    cannot("there is no Python with venv in /usr/bin: apt-get install python3-venv")
    raise AssertionError


def gather_wheels(directory: pathlib.Path) -> pathlib.Path:
    """Everything that pip needs to install ckptd from its checkout without a network."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    subprocess.run([system_python(), "-m", "venv", str(directory / "venv")], check=True)
    pip = [str(directory / "venv/bin/python"), "-m", "pip", "wheel", "-qq", "--no-input"]
    wheels = directory / "wheels"
    subprocess.run([*pip, "-c", str(REPO / "constraints.txt"), "-w", str(wheels), *wanted], check=True, timeout=900)
    return wheels


def copy_checkout(directory: pathlib.Path) -> pathlib.Path:
    """A checkout of its own: others may work in the real one, and an upgrade changes it."""
    checkout = directory / "checkout"
    for name in ("scripts", "systemd", "daemon", "catalog", "validators", "docs"):
        shutil.copytree(REPO / name, checkout / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for path in REPO.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, checkout / path.name)
    return checkout


class Installation:
    """The service on a machine, and how it is reached."""

    def __init__(self, machine: Machine, wheels: pathlib.Path, checkout: pathlib.Path) -> None:
        self.machine = machine
        self.checkout = checkout
        self._wheels = wheels
        self._built: dict[str, str] = {}

    def install(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run scripts/install there."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._wheels), "PIP_CONFIG_FILE": "/dev/null"}
        page = {"CKPTD_PAGE": os.environ["CKPTD_PAGE"]} if "CKPTD_PAGE" in os.environ else {}
        return self.machine.run(
            f"{self.checkout}/scripts/install", *arguments, check=check, timeout_s=900, env=offline | page
        )

    def install_built(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The same with a wheel that is built once for each version of the checkout, as scripts/install builds it."""
        version = (self.checkout / "pyproject.toml").read_text(encoding="utf-8")
        if version not in self._built:
            scratch = tempfile.mkdtemp(dir=self.checkout.parent)
            run = [system_python(), "-I", "-c", _BUILD, str(self.checkout / "scripts/lib"), scratch]
            offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._wheels), "PIP_CONFIG_FILE": "/dev/null"}
            done = subprocess.run(
                run, env=os.environ | offline, check=True, timeout=900, stdout=subprocess.PIPE, text=True
            )
            self._built[version] = done.stdout.split()[-1]
        return self.install("--wheel", self._built[version], *arguments, check=check)

    def get(self, path: str, url: str = URL, **headers: str) -> httpx.Response:
        """One request, from the machine itself."""
        with self.machine.network():
            return httpx.get(url + path, headers=headers, timeout=DEADLINE_S, verify=_NO_TLS)

    def is_up(self, url: str = URL) -> bool:
        """Whether it answers."""
        try:
            return self.get("/health", url).status_code == 200
        except httpx.TransportError:
            return False

    def health(self, url: str = URL, **headers: str) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self.get("/health/checkpoints", url, **headers).json())

    def entries(self, url: str = URL, **headers: str) -> dict[str, dict[str, Any]]:
        """What it lists, invalid ones included, by path."""
        answer = self.get("/checkpoints?page_size=1000&include_invalid=true", url, **headers)
        assert answer.status_code == 200, answer.text
        return {entry["path"]: entry for entry in answer.json()["checkpoints"]}

    def wait_for(self, path: str, url: str = URL, **expected: object) -> dict[str, Any]:
        """Wait until a checkpoint is listed, with these values."""

        def found() -> dict[str, Any] | None:
            entry = self.entries(url).get(path)
            return entry if entry is not None and expected.items() <= entry.items() else None

        return eventually(found, f"{path} is listed with {expected}", every_s=0.05)

    def main_pid(self, unit: str = "ckptd.service") -> int:
        """Of the service's process, as the machine counts."""
        return int(self.machine.show(unit, "MainPID"))

    def wait_active(self, unit: str = "ckptd.service") -> None:
        """Wait until systemd has heard that it is ready."""
        eventually(
            lambda: self.machine.show(unit, "ActiveState") == "active", f"{unit} is active", deadline_s=120, every_s=0.1
        )

    def inside(self, code: str, unit: str = "ckptd.service") -> Any:
        """Run Python with the user, the view of files and the rules of a unit; returns what `code` leaves in `result`.

        A unit of its own with the same settings: nobody can enter a process that is confined like this.
        """
        instance = unit.partition("@")[2].removesuffix(".service")
        settings = self.machine.run("systemctl", "cat", unit).stdout.replace("%i", instance)
        kept = [line for line in settings.splitlines() if not line.startswith(_OF_THE_DAEMON)]
        state = f"/var/lib/{self.machine.show(unit, 'StateDirectory')}"
        script = f"import json, os\n{textwrap.dedent(code)}\njson.dump(result, open('{state}/probe.json', 'w'))\n"
        self.machine.path("/opt/ckptd/probe.py").write_text(script)
        run = "[Service]\nType=oneshot\nExecStart=/opt/ckptd/bin/python -I /opt/ckptd/probe.py\n"
        self.machine.path("/etc/systemd/system/probe.service").write_text("\n".join(kept) + "\n" + run)
        self.machine.systemctl("daemon-reload")
        self.machine.systemctl("start", "probe.service", check=False)
        assert self.machine.show("probe.service", "Result") == "success", self.machine.journal("probe.service")
        found = self.machine.path(f"{state}/probe.json")
        result = json.loads(found.read_text())
        found.unlink()
        return result


_OF_THE_DAEMON = ("ExecStart", "ExecReload", "Type=", "Restart", "Watchdog", "NotifyAccess", "Requires=", "WantedBy")
_BUILD = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from install_package import build_wheel
print(build_wheel(pathlib.Path(sys.argv[2])))
"""
