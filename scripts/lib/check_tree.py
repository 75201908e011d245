"""Check what no linter looks at: versions that agree, no paths of one machine, scripts that can be executed."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

MACHINE_PATHS = re.compile(rb"(?<![\w./*$}~-])/(?:root|work|Users|home/(?!user/|you/)[a-z][\w-]*)/[\w.-]+")
"""Home and work directories, where they begin a path."""

SKIPPED = (".svg", ".png", ".woff2", ".ico", "package-lock.json")


def tracked(repo: Path) -> list[Path]:
    """Files under version control, or, outside a repository, everything but hidden directories."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, check=False)
    if listing.returncode == 0:
        return [repo / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return [path for path in repo.rglob("*") if path.is_file() and not any(p.startswith(".") for p in path.parts)]


def versions(repo: Path) -> Iterator[str]:
    """The version of pyproject.toml heads the changelog, as released or as unreleased."""
    with open(repo / "pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    changelog = (repo / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    if heading is None or heading[1] != version:
        found = heading[1] if heading else "none"
        yield f"CHANGELOG.md: its first version is {found}, pyproject.toml says {version}; make them agree"


def constraints(repo: Path) -> Iterator[str]:
    """Constraints are pins that any index can serve: no hosts, no paths, no local versions."""
    for number, line in enumerate((repo / "constraints.txt").read_text(encoding="utf-8").splitlines(), 1):
        if line and not line.startswith("#") and not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", line):
            yield f"constraints.txt:{number}: {line!r} is not a plain pin; write name==version"


def machine_paths(repo: Path, files: list[Path]) -> Iterator[str]:
    """No file names a directory of the machine that it was written on."""
    here = os.fsencode(repo) + b"/"
    for path in files:
        if path.name.endswith(SKIPPED) or not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            found = MACHINE_PATHS.search(line)
            if found or here in line:
                shown = os.fsdecode(found[0] if found else here)
                yield f"{path.relative_to(repo)}:{number}: names a directory of one machine ({shown}); make it relative"


def executables(repo: Path) -> Iterator[str]:
    """What has a first line for the kernel can be executed, and what lies in scripts/ has one."""
    for path in sorted([*(repo / "scripts").iterdir(), *(repo / ".ci").glob("*")]):
        if not path.is_file() or path.suffix:
            continue
        if not path.read_bytes().startswith(b"#!"):
            yield f"{path.relative_to(repo)}: has no first line for the kernel (#!)"
        if not os.access(path, os.X_OK):
            yield f"{path.relative_to(repo)}: cannot be executed; chmod +x it"


def main(directory: str) -> int:
    """Print each problem; 1 if there is one."""
    repo = Path(directory).resolve()
    problems = [*versions(repo), *constraints(repo), *machine_paths(repo, tracked(repo)), *executables(repo)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "."))
