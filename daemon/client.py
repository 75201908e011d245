"""CatalogClient: the Python client of the wire; lists, details, comparisons, rebuilds, and changes as they come."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import httpx
import msgspec

from ckptd.catalog.compare import Comparison
from ckptd.catalog.entry import CheckpointEntry
from ckptd.validators.inspection import TensorInfo

from .client_requests import (
    HEALTH,
    LARGEST_PAGE,
    Request,
    compare_request,
    detail_request,
    following,
    list_request,
    query_of,
    rebuild_request,
    tensors_request,
)
from .client_stream import CONNECT_TIMEOUT_S, Follower, OnStatus, check_answer, refusal
from .client_types import (
    Change,
    ChangeKind,
    CheckpointDetail,
    CheckpointPage,
    ClientError,
    DetailedFinding,
    Rebuild,
    StreamState,
    StreamStatus,
    TensorPage,
    decode,
)
from .client_view import View
from .sockets import STATE_SOCKET

__all__ = [
    "AsyncCatalogClient",
    "CatalogClient",
    "Change",
    "ChangeKind",
    "CheckpointDetail",
    "CheckpointPage",
    "ClientError",
    "DetailedFinding",
    "Rebuild",
    "StreamState",
    "StreamStatus",
    "TensorPage",
    "find_daemon",
]

TIMEOUT_S = 30.0
_TOKEN_FILE = "token"  # noqa: S105 - the name of a file


class _Client:
    """What both clients have in common: where the daemon is, and the live stream."""

    def __init__(self, url: str | None = None, *, uds: str | None = None, token: str | None = None) -> None:
        """See `AsyncCatalogClient`."""
        if url is None and uds is None:
            raise ValueError("name the daemon by url or uds")
        if uds is None and not str(url).startswith(("http://", "https://")):
            raise ClientError(f"{url!r} is no address of a daemon; write http://HOST:PORT")
        self._where = uds or str(url)
        self._uds = uds
        self._options: dict[str, Any] = {
            "base_url": "http://localhost" if uds is not None else url,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": TIMEOUT_S,
            "trust_env": False,  # a proxy has no business between a person and their own daemon
            # To load the certificates of the world takes 20 ms: longer than most requests.
            "verify": True if self._where.startswith("https://") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        }
        if uds is not None:
            self._options["headers"]["Accept-Encoding"] = "identity"  # nothing is gained within one machine

    async def watch(
        self,
        *,
        last_event_id: str | None = None,
        known: Iterable[CheckpointEntry] = (),
        on_status: OnStatus | None = None,
        **filters: Any,
    ) -> AsyncIterator[Change]:
        """Every change, for ever: first what exists, then what happens; over restarts of the daemon, without gaps.

        Whenever a new snapshot is needed it is compared with what was told before, and only the difference is told,
        deletions included. A connection that says nothing for 2.5 heartbeats is given up; the next one begins after a
        pause that grows, has jitter, and is at least what the daemon asks for.

        Args:
            last_event_id: `event_id` of the last change that was worked off, to go on behind it.
            known: entries that the caller has kept from an earlier watch with these filters; if the daemon can no
                longer go on behind `last_event_id`, those that have vanished meanwhile are told as deleted.
            on_status: told how the watch stands with the daemon whenever that changes, and at each heartbeat.
            filters: as `GET /checkpoints` has them.

        Raises:
            ClientError: the daemon refuses (a wrong filter or token). One that cannot be reached is waited for.
        """
        view = View(last_event_id, known)
        async with self._http_for_stream() as http:
            follower = Follower(http, query_of(filters), view, on_status or _ignore)
            async with contextlib.aclosing(follower.events()) as events:
                async for event, message in events:
                    for change in view.apply(event, message):
                        yield change

    def _http_for_stream(self) -> httpx.AsyncClient:
        # Time-outs of reading are the follower's: it knows the heartbeat.
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=None)
        return self._async_http(timeout=timeout)

    def _async_http(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=self._uds) if self._uds else None
        return httpx.AsyncClient(transport=transport, **(self._options | options))

    def _unreachable(self, error: httpx.HTTPError) -> ClientError:
        why = str(error) or type(error).__name__
        return ClientError(
            f"no daemon answers at {self._where} ({why}); start one with `ckptd serve`, or set CKPTD_URL"
        )


class CatalogClient(_Client):
    """A client of one daemon for scripts: each call waits for its answer. Use it as a context manager, or `close` it.

    Parameters are those of the HTTP API: sequences are sent as repeated parameters, times as RFC 3339, None not at all.
    """

    def __init__(self, url: str | None = None, *, uds: str | None = None, token: str | None = None) -> None:
        """As `AsyncCatalogClient`."""
        super().__init__(url, uds=uds, token=token)
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=uds) if uds else None, **self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def list(self, **parameters: Any) -> CheckpointPage:
        """One page of the list.

        Raises:
            ClientError: the daemon cannot be reached or refuses.
        """
        return decode(self._ask(list_request(parameters)), CheckpointPage)

    def iterate(self, **parameters: Any) -> Iterator[CheckpointEntry]:
        """All entries that match, page by page; none is skipped or told twice, unless it moves in the order meanwhile.

        Raises:
            ClientError: as `list`.
        """
        asked: Mapping[str, Any] | None = {"page_size": LARGEST_PAGE} | parameters
        while asked is not None:
            page = self.list(**asked)
            yield from page.checkpoints
            asked = following(asked, page)

    def get(self, checkpoint_id: str) -> CheckpointDetail:
        """Everything known of one checkpoint.

        Raises:
            ClientError: as `list`; status 404 for an unknown id, 410 for a deleted one.
        """
        return decode(self._ask(detail_request(checkpoint_id)), CheckpointDetail)

    def tensors(self, checkpoint_id: str, **parameters: Any) -> Sequence[TensorInfo]:
        """The tensor table of one checkpoint, or those tensors that match.

        Raises:
            ClientError: as `get`.
        """
        found: list[TensorInfo] = []
        while True:
            page = decode(self._ask(tensors_request(checkpoint_id, parameters, len(found))), TensorPage)
            found += page.tensors
            if not page.tensors or len(found) >= page.total or "limit" in parameters:
                return found

    def compare(self, *checkpoint_ids: str, **parameters: Any) -> Comparison:
        """Two to four checkpoints side by side.

        Raises:
            ClientError: as `get`.
        """
        return decode(self._ask(compare_request(checkpoint_ids, parameters)), Comparison)

    def compare_text(self, *checkpoint_ids: str, media_type: str = "text/markdown", **parameters: Any) -> str:
        """The same as a table: `text/markdown` or `text/csv`.

        Raises:
            ClientError: as `get`.
        """
        return self._ask(compare_request(checkpoint_ids, parameters, media_type)).decode()

    def health(self) -> dict[str, Any]:
        """The catalog's health.

        Raises:
            ClientError: as `list`.
        """
        return decode(self._ask(HEALTH), dict[str, Any])

    def rebuild(self, mode: str = "sweep", *, wait: bool = False, timeout_s: float | None = None) -> Rebuild:
        """Have the tree looked at again.

        Args:
            mode: `sweep` trusts what is unchanged, `full` reads every checkpoint again.
            wait: return when it is done, not when it was asked for. Not from within an event loop.
            timeout_s: how long to wait at most.

        Raises:
            ClientError: as `list`.
            TimeoutError: the wait took longer.
        """
        if not wait:
            return decode(self._ask(rebuild_request(mode)), Rebuild)
        return asyncio.run(self._rebuilt(mode, timeout_s))

    async def _rebuilt(self, mode: str, timeout_s: float | None) -> Rebuild:
        async with AsyncCatalogClient(**self._address()) as client:
            return await client.rebuild(mode, wait=True, timeout_s=timeout_s)

    def _address(self) -> dict[str, Any]:
        token = self._options["headers"].get("Authorization", "").removeprefix("Bearer ") or None
        return {"url": None if self._uds else self._where, "uds": self._uds, "token": token}

    def _ask(self, request: Request) -> bytes:
        try:
            answer = self._http.request(
                request.method, request.path, params=query_of(request.parameters), headers={"Accept": request.accept}
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            raise refusal(answer)
        return answer.content


class AsyncCatalogClient(_Client):
    """The same for programs with an event loop. Use it as an async context manager, or `aclose` it."""

    def __init__(self, url: str | None = None, *, uds: str | None = None, token: str | None = None) -> None:
        """Args:
        url: base URL of the daemon, such as `http://127.0.0.1:8765`; its path is the prefix that it lies under.
        uds: path of its Unix socket; goes before `url`.
        token: for daemons that ask for one.

        Raises:
            ClientError: the URL is none of HTTP.
        """
        super().__init__(url, uds=uds, token=token)
        self._http = self._async_http()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def list(self, **parameters: Any) -> CheckpointPage:
        """As `CatalogClient.list`."""
        return decode(await self._ask(list_request(parameters)), CheckpointPage)

    async def iterate(self, **parameters: Any) -> AsyncIterator[CheckpointEntry]:
        """As `CatalogClient.iterate`."""
        asked: Mapping[str, Any] | None = {"page_size": LARGEST_PAGE} | parameters
        while asked is not None:
            page = await self.list(**asked)
            for entry in page.checkpoints:
                yield entry
            asked = following(asked, page)

    async def get(self, checkpoint_id: str) -> CheckpointDetail:
        """As `CatalogClient.get`."""
        return decode(await self._ask(detail_request(checkpoint_id)), CheckpointDetail)

    async def tensors(self, checkpoint_id: str, **parameters: Any) -> Sequence[TensorInfo]:
        """As `CatalogClient.tensors`."""
        found: list[TensorInfo] = []
        while True:
            page = decode(await self._ask(tensors_request(checkpoint_id, parameters, len(found))), TensorPage)
            found += page.tensors
            if not page.tensors or len(found) >= page.total or "limit" in parameters:
                return found

    async def compare(self, *checkpoint_ids: str, **parameters: Any) -> Comparison:
        """As `CatalogClient.compare`."""
        return decode(await self._ask(compare_request(checkpoint_ids, parameters)), Comparison)

    async def compare_text(self, *checkpoint_ids: str, media_type: str = "text/markdown", **parameters: Any) -> str:
        """As `CatalogClient.compare_text`."""
        return (await self._ask(compare_request(checkpoint_ids, parameters, media_type))).decode()

    async def health(self) -> dict[str, Any]:
        """As `CatalogClient.health`."""
        return decode(await self._ask(HEALTH), dict[str, Any])

    async def rebuild(self, mode: str = "sweep", *, wait: bool = False, timeout_s: float | None = None) -> Rebuild:
        """As `CatalogClient.rebuild`, from within an event loop."""
        if not wait:
            return decode(await self._ask(rebuild_request(mode)), Rebuild)
        asked: Rebuild | None = None
        view = View()
        async with (
            asyncio.timeout(timeout_s),
            self._http_for_stream() as http,
            contextlib.aclosing(Follower(http, {}, view, _ignore).events()) as events,
        ):
            async for event, message in events:
                view.event_id = event.id
                if asked is None:  # listen first, ask then: the answer cannot be missed
                    asked = decode(await self._ask(rebuild_request(mode)), Rebuild)
                elif message.type == "rebuilt" and message.token == asked.token:
                    return msgspec.structs.replace(asked, revision=message.revision)
        raise AssertionError("the stream of messages has no end")

    async def _ask(self, request: Request) -> bytes:
        try:
            answer = await self._http.request(
                request.method, request.path, params=query_of(request.parameters), headers={"Accept": request.accept}
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        await check_answer(answer)
        return answer.content


def find_daemon(state_dir: str, env: Mapping[str, str] | None = None) -> CatalogClient:
    """The client of the daemon that the environment names, else of the one that keeps its state in `state_dir`.

    Args:
        state_dir: where a daemon of this user would keep its state.
        env: `CKPTD_URL` and `CKPTD_TOKEN` are looked up here; by default in the process's environment.

    Raises:
        ClientError: no daemon is named, and none listens in the state directory.
    """
    env = os.environ if env is None else env
    if env.get("CKPTD_URL"):
        return CatalogClient(env["CKPTD_URL"], token=env.get("CKPTD_TOKEN") or _kept_token(state_dir))
    path = os.path.join(state_dir, STATE_SOCKET)
    if not os.path.exists(path):
        raise ClientError(f"no daemon listens at {path}; start one with `ckptd serve`, or set CKPTD_URL")
    return CatalogClient(uds=path)


def _ignore(_: StreamStatus) -> None:
    """Nobody asked how the watch stands."""


def _kept_token(state_dir: str) -> str | None:
    try:
        with open(os.path.join(state_dir, _TOKEN_FILE), encoding="ascii") as file:
            return file.read(4096).strip() or None
    except (OSError, UnicodeDecodeError):
        return None
