"""The clients in docs/streaming.md do what the page says, against a real daemon."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.service.checkpoints import checkpoint_bytes, rename_in
from tests.service.daemons import DEADLINE_S, Daemon, eventually

PAGE = (pathlib.Path(__file__).parents[2] / "docs/streaming.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    for number in (1, 2):
        rename_in(home / f"outputs/dbnet/checkpoints/epoch={number}-hmean=0.{number}.ckpt", checkpoint_bytes(number))
    with Daemon(home / "outputs", home / "state", sidecars="off") as running:
        eventually(lambda: [e["health"] for e in running.entries().values()] == ["valid"] * 2, "both are described")
        yield running


def start(daemon: Daemon, *command: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "CKPTD_URL": daemon.url}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=daemon.state.parent)


def test_the_watching_program_tells_of_a_new_best(daemon: Daemon) -> None:
    watching, _ = blocks("python")
    with start(daemon, sys.executable, "-c", watching) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith("up to date"):
                rename_in(daemon.roots[0] / "dbnet/checkpoints/epoch=3-hmean=0.9.ckpt", checkpoint_bytes(3))
            if line.startswith("new best: 0.9 "):
                break
        else:
            raise AssertionError(f"it ended with {program.wait()}")
        program.kill()


def test_the_comparing_program_prints_markdown(daemon: Daemon) -> None:
    _, comparing = blocks("python")
    with start(daemon, sys.executable, "-c", comparing) as program:
        printed, _ = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 0
    assert printed.startswith("# Comparison of 2 checkpoints")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_shows_what_the_page_shows(daemon: Daemon) -> None:
    shown = [line for line in blocks("console")[0].splitlines() if line and not line.startswith("$")]
    with start(daemon, "curl", "-sN", f"{daemon.url}/checkpoints/events") as curl:
        assert curl.stdout is not None
        lines = []
        for line in curl.stdout:
            lines += [line.strip()] if line.strip() else []
            if '"complete"' in line:
                break
        curl.kill()
    kinds = re.findall(r'"type":"(\w+)"', "\n".join(shown))
    assert kinds[:3] == re.findall(r'"type":"(\w+)"', "\n".join(lines)) == ["reset", "batch", "complete"]
    assert [line.partition(":")[0] for line in shown[:5]] == [line.partition(":")[0] for line in lines]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_browsers_client_holds_what_the_daemon_holds(daemon: Daemon) -> None:
    """In node, with an EventSource of a few lines around the page's own."""
    (client,) = blocks("js")
    around = f"""
        globalThis.EventSource = class {{ constructor(path) {{ open(this, path) }} }}
        async function open(source, path) {{
          const answer = await fetch({daemon.url!r} + path)
          let text = ''
          for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {{
            text += piece
            const events = text.split('\\n\\n')
            text = events.pop()
            for (const event of events) {{
              const data = event.split('\\n').find((line) => line.startsWith('data: '))
              source.onmessage({{ data: data.slice(6) }})
              if (data.includes('"complete"')) done()
            }}
          }}
        }}
        function done() {{ console.log([...checkpoints.keys()].sort().join()); process.exit(0) }}
        {client}
    """
    with start(daemon, "node", "-e", around) as node:
        printed, _ = node.communicate(timeout=DEADLINE_S)
    assert printed.strip().split(",") == sorted(entry["id"] for entry in daemon.entries().values())
