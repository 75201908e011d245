"""Running `ckptd` as its users do: in a process of its own, started afresh or forked from one that is ready."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.daemon.prepared_commands import prepared

CKPTD = str(Path(sys.executable).with_name("ckptd"))
TIMEOUT_S = 120
Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a person who has set nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "XDG_"))}
    for name in ("STATE_DIRECTORY", "COLUMNS", "LINES"):  # test runners set the latter two; a terminal has its own
        kept.pop(name, None)
    return kept | {"HOME": str(home)} | extra


def ckptd(*arguments: str | Path, home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, in a process that is forked from one with all commands imported."""
    if any(name.startswith("PYTHON") for name in extra):
        return ckptd_afresh(*arguments, home=home, **extra)
    command = [CKPTD, *map(str, arguments)]
    return prepared().run(command, home, environment(home, **extra), TIMEOUT_S)


def ckptd_afresh(*arguments: str | Path, home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, as a shell would start it."""
    return subprocess.run(
        [CKPTD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        cwd=home,
        env=environment(home, **extra),
    )


def ckptd_json(*arguments: str | Path, home: Path, status: int = 0, run: Run = ckptd) -> Any:
    """The JSON of a run with `--json`, which must end with `status`."""
    result = run(*arguments, "--json", home=home)
    assert result.returncode == status, result.stderr
    return json.loads(result.stdout)


def save(path: Path, *, epoch: int = 1, names: Sequence[str] = ("encoder.weight", "head.bias")) -> Path:
    """A small checkpoint, by torch.save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "global_step": 10, "state_dict": {name: torch.ones(4, 4) for name in names}}, path)
    return path


def damage(path: Path) -> Path:
    """Cut the file off in its middle, long ago."""
    os.truncate(path, path.stat().st_size // 2)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path
