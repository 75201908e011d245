"""The package in its prefix: a Python environment of its own, with ckptd as the checkout holds it."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from install_plan import REPO
from machine import run

STAMP = ".ckptd-wheel"
"""In the prefix: the digest of the wheel that is installed there; it also marks the prefix as ours to remove."""
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
        if stamp.exists() and stamp.read_text(encoding="ascii") == digest and works(prefix):
            return False
        if not works(prefix):
            run(sys.executable, "-m", "venv", "--clear", prefix)
            os.chmod(prefix, 0o755)  # also under a umask that closes it to the service's user
        pip = (f"{prefix}/bin/python", "-m", "pip", "install", "-qq", "--no-input", "-c", f"{REPO}/constraints.txt")
        run(*pip, str(built))
        # The version may be the same while the contents are not.
        run(*pip, "--force-reinstall", "--no-deps", str(built))
        shutil.copytree(REPO / "docs", Path(prefix, "share", "doc", "ckptd"), dirs_exist_ok=True)
        stamp.write_text(digest, encoding="ascii")
    return True


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
