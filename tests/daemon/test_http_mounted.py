"""The whole service mounted in another application: a real tree, real files, the host's lifespan."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from ckptd.daemon.http import create_app
from ckptd.daemon.settings import Settings
from tests.daemon.fakes import RawListener, until

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def hosted(catalog: Starlette) -> AsyncIterator[str]:
    """A host application with the catalog under /inference; its lifespan enters the catalog's."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with catalog.router.lifespan_context(catalog):
            yield

    host = Starlette(routes=[Mount("/inference", app=catalog)], lifespan=lifespan)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(host, lifespan="on", log_config=None, access_log=False))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([listener]))
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True


async def test_a_mounted_catalog_lists_streams_and_ends_with_its_host(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    await asyncio.to_thread(torch.save, {"state_dict": {"w": torch.ones(2, 3)}}, outputs / "first.ckpt")
    settings = Settings(
        roots=(str(outputs),), state_dir=str(tmp_path / "state"), allow_anonymous=True, workers=1, watch_step_ms=1
    )
    async with hosted(create_app(settings)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            listener = RawListener(*await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1])))
            await listener.ask("/inference/checkpoints/events")
            assert b"first.ckpt" in await listener.until("batch", "upsert")
            page = (await http.get("/inference/checkpoints")).json()
            assert page["checkpoints"][0]["n_parameters"] == 6
            detail = await http.get(f"/inference/checkpoints/{page['checkpoints'][0]['id']}/tensors")
            assert detail.json()["tensors"][0]["shape"] == [2, 3]
        await listener.close()
    assert (outputs / ".checkpoint_index.json").exists(), "the end was an orderly one"


async def test_a_mounted_catalog_needs_the_token_unless_the_host_answers_for_its_readers(tmp_path: Path) -> None:
    settings = Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state"), workers=1)
    async with hosted(create_app(settings)) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        assert (await http.get("/inference/checkpoints")).status_code == 401
        token = (tmp_path / "state" / "token").read_text().strip()
        visit = await http.get(f"/inference/?token={token}")
        assert (visit.status_code, visit.headers["location"]) == (303, "/inference/")
        assert (await http.get("/inference/checkpoints")).status_code == 200


async def test_without_its_lifespan_it_says_what_is_missing(tmp_path: Path) -> None:
    app = create_app(Settings(roots=(str(tmp_path),), state_dir=str(tmp_path / "state")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        answer = await http.get("/checkpoints")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "lifespan" in answer.json()["remedy"]
