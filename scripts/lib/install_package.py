"""The package in its prefix: a Python environment of its own, with ckptd as the checkout holds it."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from install_plan import REPO, STAMP
from machine import InstallError, run

NEEDED_MB = 100
"""What an environment with ckptd takes: 72 MB (measured), and what pip unpacks meanwhile."""
_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "setup.py", "setup.cfg", "scripts", "daemon")
_BUILT_FROM += ("catalog", "validators", "constraints.txt")


def is_ours(prefix: str) -> bool:
    """Whether a prefix was made by this script, so that it may be removed."""
    return os.path.exists(os.path.join(prefix, STAMP))


def install_package(prefix: str, wheel: str | None) -> bool:
    """Have the prefix hold what the checkout holds. What is there stays untouched until a wheel is built.

    Args:
        prefix: where.
        wheel: to install instead of building the checkout.

    Returns:
        Whether anything was installed; False where it holds this version already.

    Raises:
        InstallError: it cannot be built or installed.
    """
    with tempfile.TemporaryDirectory(prefix="ckptd-install-") as scratch:
        built = Path(wheel) if wheel is not None else build_wheel(Path(scratch))
        digest = hashlib.sha256(built.read_bytes()).hexdigest()
        stamp = Path(prefix, STAMP)
        held = stamp.read_text(encoding="ascii") if stamp.exists() else ""
        if held == digest and works(prefix):
            return False
        if not (held and works(prefix)):
            make_environment(prefix)
        stamp.write_text("", encoding="ascii")  # what a full disk leaves half made is made anew next time
        pip = (f"{prefix}/bin/python", "-m", "pip", "install", "-qq", "--no-input", "-c", f"{REPO}/constraints.txt")
        run_with_room(prefix, *pip, str(built))
        # The version may be the same while the contents are not.
        run_with_room(prefix, *pip, "--force-reinstall", "--no-deps", str(built))
        shutil.copytree(REPO / "docs", Path(prefix, "share", "doc", "ckptd"), dirs_exist_ok=True)
        stamp.write_text(digest, encoding="ascii")
    return True


def make_environment(prefix: str) -> None:
    """A Python environment without anything in it.

    Raises:
        InstallError: it cannot be made, or would take the place of what others made.
    """
    if os.path.isdir(prefix) and os.listdir(prefix) and not is_ours(prefix):
        raise InstallError(f"{prefix} holds what scripts/install did not put there; empty it, or name another --prefix")
    try:
        run_with_room(prefix, sys.executable, "-m", "venv", "--clear", prefix)
        os.chmod(prefix, 0o755)  # also under a umask that closes it to the service's user
    finally:
        if os.path.isdir(prefix):
            Path(prefix, STAMP).touch()  # also a half of it is ours to remove


def run_with_room(prefix: str, *command: str) -> None:
    """Run a command that fills the prefix. pip and venv do not always say that a disk is full.

    Raises:
        InstallError: it failed.
    """
    try:
        run(*command)
    except InstallError as error:
        place = next(place for place in (prefix, *map(str, Path(prefix).parents)) if os.path.isdir(place))
        left_mb = shutil.disk_usage(place).free >> 20
        if left_mb >= NEEDED_MB:
            raise
        raise InstallError(
            f"ckptd could not be installed in {prefix}, whose disk has {left_mb} MB left, and {NEEDED_MB} are needed; "
            f"make room, or name another --prefix. It ended with: {str(error).splitlines()[-1]}"
        ) from error


def build_wheel(scratch: Path) -> Path:
    """A wheel of the checkout, built in a copy: nothing of root's is left behind in somebody's checkout."""
    source = scratch / "source"
    source.mkdir()
    for name in _BUILT_FROM:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        elif (REPO / name).exists():
            shutil.copy2(REPO / name, source / name)
    print("building ckptd", flush=True)
    environment = scratch / "build"
    run(sys.executable, "-m", "venv", str(environment))
    os.environ["SOURCE_DATE_EPOCH"] = "1577836800"  # the same sources make the same wheel, byte for byte
    run(f"{environment}/bin/pip", "wheel", "-qq", "--no-input", "--no-deps", "-w", str(scratch), str(source))
    return next(scratch.glob("ckptd-*.whl"))


def works(prefix: str) -> bool:
    """Whether there is an environment whose Python runs; one that was upgraded away leaves dangling links."""
    try:
        return subprocess.run([f"{prefix}/bin/python", "-c", ""], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def interpreter(prefix: str) -> str:
    """The program that the service really executes."""
    python = f"{prefix}/bin/python"
    return os.path.realpath(python if os.path.exists(python) else sys.executable)
