"""A real `ckptd serve` in a process of its own, for tests that need the whole thing."""

import contextlib
import datetime as dt
import json
import os
import pathlib
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import httpx

from tests.service.contract import checked, contract

DEADLINE_S = 60.0
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Everything here is plain HTTP: to load the certificates anew for each request takes longer than the request."""
_T = TypeVar("_T")


def eventually(
    probe: Callable[[], _T | None], what: str, *, deadline_s: float = DEADLINE_S, every_s: float = 0.01
) -> _T:
    """Return the first true answer of `probe`, asked again and again; fails the test after the deadline.

    The longer it takes, the less often it asks: what asks all the time takes the core from what it waits for.
    """
    began = time.monotonic()
    end = began + deadline_s
    while True:
        answer = probe()
        if answer:
            return answer
        now = time.monotonic()
        assert now < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(max(every_s, min((now - began) / 20, 0.2)))


class Daemon:
    """`ckptd serve` on a free port. Leaves no process behind when used as a context manager."""

    def __init__(self, roots: pathlib.Path | list[pathlib.Path], state: pathlib.Path, **settings: object) -> None:
        self.roots = [roots] if isinstance(roots, pathlib.Path) else roots
        self.state = state
        self.settings = settings
        self.port_file = state.with_name(state.name + ".port")
        self.log_file = state.with_name(state.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line."""
        flags = {"port": 0, "port-file": self.port_file, "state-dir": self.state, "allow-anonymous": None}
        flags |= {name.replace("_", "-"): value for name, value in self.settings.items()}
        given = [
            part for name, value in flags.items() for part in (f"--{name}", *([] if value is None else [str(value)]))
        ]
        return [sys.executable, "-m", "ckptd.daemon.cli", "serve", "--roots", *map(str, self.roots), *map(str, given)]

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        self.launch()
        try:
            eventually(self.is_up, f"the service answers; its log: {self.log_file}")
        except BaseException:
            self.__exit__()  # of a context manager that is not entered nobody else calls it
            raise
        return self

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        self.port_file.unlink(missing_ok=True)
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd="/")

    def is_up(self) -> bool:
        """Whether it answers; fails the test if it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"the service ended with {self.process.returncode}:\n{self.log()}"
        if not self.port_file.exists():
            return False
        with contextlib.suppress(httpx.TransportError):
            return self.get("/health").status_code == 200
        return False

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    @property
    def pid(self) -> int:
        """Of the service process."""
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port_file.read_text().strip()}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait for the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def log(self) -> str:
        """Everything it has logged, over all its runs."""
        return self.log_file.read_text(errors="replace")

    # ---- asking it ---------------------------------------------------------------------------------------------

    def get(self, path: str, **parameters: object) -> httpx.Response:
        """One request, whose answer must be as /openapi.json says."""
        shown = {k: str(v) for k, v in parameters.items()}
        return checked(httpx.get(self.url + path, params=shown, timeout=DEADLINE_S, verify=_NO_TLS))

    def health(self) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self.get("/health/checkpoints").json())

    def entries(self) -> dict[str, dict[str, Any]]:
        """Everything listed, invalid ones included, by path."""
        found: dict[str, dict[str, Any]] = {}
        page = 1
        while True:
            answer = self.get("/checkpoints", page=page, page_size=1000, include_invalid="true").json()
            found |= {entry["path"]: entry for entry in answer["checkpoints"]}
            if page >= answer["total_pages"]:
                return found
            page += 1

    def rebuild(self, mode: str = "sweep") -> str:
        """Ask for a rebuild; returns its token."""
        answer = httpx.post(f"{self.url}/rebuild", params={"mode": mode}, timeout=DEADLINE_S)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["token"])

    def wait_complete(self, since: float | None = None, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until the catalog is complete as of `since` (by default: now); returns the health then."""
        moment = time.time() if since is None else since

        def complete() -> dict[str, Any] | None:
            health = self.health()
            as_of = health["complete_as_of"]
            return health if as_of is not None and epoch_of(as_of) >= moment else None

        return eventually(complete, f"complete as of {moment}", deadline_s=deadline_s)

    @contextlib.contextmanager
    def events(self, **parameters: object) -> Iterator[Iterator[dict[str, Any]]]:
        """The live stream, as decoded messages; each carries its event id as `_id`."""
        timeout = httpx.Timeout(DEADLINE_S)
        with httpx.stream(
            "GET",
            self.url + "/checkpoints/events",
            params={k: str(v) for k, v in parameters.items()},
            timeout=timeout,
            verify=_NO_TLS,
        ) as response:
            assert response.status_code == 200
            yield _messages(response.iter_lines())


def _messages(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    data: list[str] = []
    event_id = None
    for line in lines:
        if not line:
            if data:
                message = json.loads("\n".join(data))
                contract().validate("LiveMessage", message)
                yield message | {"_id": event_id}
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("id:"):
            event_id = line[3:].removeprefix(" ")


def epoch_of(text: str) -> float:
    """A time of the wire as epoch seconds."""
    return dt.datetime.fromisoformat(text).timestamp()
