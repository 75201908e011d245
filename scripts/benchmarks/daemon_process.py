"""A real daemon in its own process, on a port of its own, with a state that is thrown away."""

import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

DEADLINE_S = 60.0
_EXECUTABLE = str(Path(sys.executable).with_name("ckptd"))


class Daemon:
    """A `ckptd serve` on `tree`; a context manager that ends it."""

    def __init__(self, tree: Path, *flags: str) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ckptd-bench-")
        self._port_file = Path(self._scratch.name, "port")
        self._log = Path(self._scratch.name, "log").open("wb")  # noqa: SIM115 - closed with the daemon
        self._command = [
            *(_EXECUTABLE, "serve", str(tree), "--port", "0", "--port-file", str(self._port_file)),
            *("--state-dir", str(Path(self._scratch.name, "state")), "--allow-anonymous", "--log-level", "warning"),
            *flags,
        ]
        self.started_at = 0.0
        self.port = 0

    def __enter__(self) -> Self:
        self.started_at = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)
        while not (text := self._read_port()):
            self.check()
            time.sleep(0.001)
        self.port = int(text)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._scratch.cleanup()

    @property
    def pid(self) -> int:
        """Of the daemon itself."""
        return self._process.pid

    def check(self) -> None:
        """End the benchmark if the daemon has ended, or takes a minute."""
        if self._process.poll() is not None or time.perf_counter() - self.started_at > DEADLINE_S:
            log = Path(self._scratch.name, "log").read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"the daemon did not answer; its log:\n{log}")

    def get(self, path: str) -> Any:
        """The JSON of one request; None while nobody accepts the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        except ConnectionRefusedError:
            return None
        finally:
            connection.close()

    def seconds_until(self, count: int) -> float:
        """Seconds from exec until the list shows `count` checkpoints."""
        while True:
            answer = self.get("/checkpoints?page_size=100")
            if answer is not None and answer["total"] >= count:
                return time.perf_counter() - self.started_at
            self.check()
            time.sleep(0.002)

    def _read_port(self) -> str:
        try:
            return self._port_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    import os

    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
