"""CatalogClient: the Python client of the wire; lists, details, rebuilds, and changes as they come."""

import asyncio
import contextlib
import enum
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

import httpx
import msgspec

from .sockets import STATE_SOCKET

TIMEOUT_S = 30.0
SILENCE_S = 60.0
"""A live stream that says nothing for so long is taken for dead: heartbeats come every 15 s."""
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 15.0
_TOKEN_FILE = "token"  # noqa: S105 - the name of a file


class ClientError(Exception):
    """Raised when the daemon cannot be reached or refuses. The message says what to do."""

    def __init__(self, message: str, status: int | None = None, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; None when nothing answered."""
        self.problem = dict(problem or {})


class ChangeKind(enum.StrEnum):
    """What happened to a checkpoint."""

    UPSERT = "upsert"
    """It is new or changed; `entry` is its full state."""
    DELETE = "delete"
    """It left the catalog, or the filtered view of it."""
    SYNCED = "synced"
    """No checkpoint: everything up to `revision` has been told. Comes after each snapshot or resumption."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change as `watch` tells it."""

    kind: ChangeKind
    id: str | None = None
    entry: dict[str, Any] | None = None
    """As in lists."""
    reason: str | None = None
    """Why it was deleted: `removed`, `moved`, `filtered`; `absent` when a new snapshot no longer shows it."""
    event_id: str | None = None
    """Give it to `watch` as `last_event_id` to go on from here; None while that is not possible."""
    revision: int | None = None


class CatalogClient:
    """A client of one daemon, over TCP or its Unix socket. Use as a context manager, or call `close`."""

    def __init__(self, url: str | None = None, *, uds: str | None = None, token: str | None = None) -> None:
        """Args:
        url: base URL of the daemon, such as `http://127.0.0.1:8765`.
        uds: path of its Unix socket; goes before `url`.
        token: for daemons that ask for one.
        """
        if url is None and uds is None:
            raise ValueError("name the daemon by url or uds")
        self._where = uds or str(url)
        self._uds = uds
        self._options: dict[str, Any] = {
            "base_url": "http://localhost" if uds is not None else url,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": TIMEOUT_S,
            "trust_env": False,  # a proxy has no business between a person and their own daemon
        }
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=uds) if uds else None, **self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- requests ------------------------------------------------------------------------------------------

    def list(self, **parameters: Any) -> dict[str, Any]:
        """One page of the list, `{checkpoints, total, page, …}`; parameters as `GET /checkpoints` has them.

        Raises:
            ClientError: the daemon cannot be reached or refuses.
        """
        return self._get("/checkpoints", parameters)

    def iterate(self, **parameters: Any) -> Iterator[dict[str, Any]]:
        """All entries that match, page by page. A change of the catalog meanwhile may repeat or skip some.

        Raises:
            ClientError: as `list`.
        """
        number = 0
        while True:
            number += 1
            page = self.list(**{"page_size": 1000} | parameters | {"page": number})
            yield from page["checkpoints"]
            if number >= page["total_pages"]:
                return

    def get(self, checkpoint_id: str) -> dict[str, Any]:
        """Everything known of one checkpoint.

        Raises:
            ClientError: as `list`; status 404 for an unknown id, 410 for a deleted one.
        """
        return self._get(f"/checkpoints/{checkpoint_id}", {})

    def tensors(self, checkpoint_id: str) -> Sequence[dict[str, Any]]:
        """The tensor table of one checkpoint.

        Raises:
            ClientError: as `get`.
        """
        tensors: Sequence[dict[str, Any]] = self._get(f"/checkpoints/{checkpoint_id}/tensors", {})["tensors"]
        return tensors

    def health(self) -> dict[str, Any]:
        """The catalog's health.

        Raises:
            ClientError: as `list`.
        """
        return self._get("/health/checkpoints", {})

    def rebuild(self, mode: str = "sweep", *, wait: bool = False, timeout_s: float | None = None) -> dict[str, Any]:
        """Have the tree looked at again.

        Args:
            mode: `sweep` trusts what is unchanged, `full` reads every checkpoint again.
            wait: return when it is done, not when it was asked for. Not from within an event loop.
            timeout_s: how long to wait at most.

        Returns:
            `{token, mode}`, and `revision` after a wait.

        Raises:
            ClientError: as `list`.
            TimeoutError: the wait took longer.
        """
        if not wait:
            return self._post("/rebuild", {"mode": mode})
        return asyncio.run(self._rebuild_and_wait(mode, timeout_s))

    # ---- the live stream -----------------------------------------------------------------------------------

    async def watch(self, *, last_event_id: str | None = None, **filters: Any) -> AsyncIterator[Change]:
        """Every change, for ever: first what exists, then what happens; over restarts of the daemon, without gaps.

        After a reset the new snapshot is compared with what was told before, and only the difference is told.

        Args:
            last_event_id: `event_id` of the last change that was worked off, to go on from there. The daemon then
                tells only what came later, and deletions of entries that this call never told are told too.
            filters: as `GET /checkpoints` has them.

        Raises:
            ClientError: the daemon refuses (a wrong filter or token). One that cannot be reached is waited for.
        """
        view = _View(last_event_id)
        async for message in self._messages(view, filters):
            for change in view.apply(message):
                yield change

    async def _messages(self, view: "_View", filters: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Messages of one connection after the other, with growing pauses while none can be had."""
        failures = 0
        transport = httpx.AsyncHTTPTransport(uds=self._uds) if self._uds else None
        options = self._options | {"timeout": httpx.Timeout(TIMEOUT_S, read=SILENCE_S)}
        async with httpx.AsyncClient(transport=transport, **options) as http:
            while True:
                retry_s: float | None = None
                headers = {"Last-Event-ID": view.event_id} if view.event_id else {}
                with contextlib.suppress(httpx.TransportError):
                    async with http.stream(
                        "GET", "/checkpoints/events", params=_text(filters), headers=headers
                    ) as answer:
                        if answer.status_code < 500:
                            await _check_async(answer)
                            async for message in _events(answer, view):
                                failures = 0
                                yield message
                            retry_s = view.retry_s
                view.interrupted()
                if retry_s is None:
                    retry_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2**failures) * (0.5 + random.random())  # noqa: S311
                failures = min(failures + 1, 10)
                await asyncio.sleep(retry_s)

    async def _rebuild_and_wait(self, mode: str, timeout_s: float | None) -> dict[str, Any]:
        """Listen first, ask then: the answer cannot be missed."""
        asked: dict[str, Any] | None = None
        view = _View(None)
        async with asyncio.timeout(timeout_s), contextlib.aclosing(self._messages(view, {})) as messages:
            async for message in messages:
                list(view.apply(message))
                if asked is None:
                    asked = await asyncio.to_thread(self._post, "/rebuild", {"mode": mode})
                elif message["type"] == "rebuilt" and message["token"] == asked["token"]:
                    return asked | {"revision": message["revision"]}
        raise AssertionError("the stream of messages has no end")

    def _get(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer("GET", path, parameters)

    def _post(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer("POST", path, parameters)

    def _answer(self, method: str, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, params=_text(parameters))
        except httpx.TransportError as error:
            message = f"no daemon answers at {self._where} ({error}); start one with `ckptd serve`, or set CKPTD_URL"
            raise ClientError(message) from error
        _check(answer)
        decoded: dict[str, Any] = msgspec.json.decode(answer.content)
        return decoded


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


class _View:
    """What was told of one stream, so that a new snapshot can be told as its difference."""

    def __init__(self, last_event_id: str | None) -> None:
        self.event_id = last_event_id
        self.retry_s: float | None = None
        self._told: dict[str, int] = {}
        """Id → revision of every entry told and not deleted since."""
        self._shadow: dict[str, dict[str, Any]] | None = None
        """A snapshot on its way. Nothing of it is told before it is whole."""

    def interrupted(self) -> None:
        """The connection ended; half a snapshot is worth nothing."""
        self._shadow = None
        self.retry_s = None

    def apply(self, message: dict[str, Any]) -> Iterator[Change]:
        """The changes that a message means."""
        match message["type"]:
            case "reset":
                self._shadow = {}
            case "batch" if self._shadow is not None:
                self._shadow |= {entry["id"]: entry for entry in message["checkpoints"]}
            case "complete":
                yield from self._difference()
                yield self._synced(message["revision"])
            case "resumed":
                yield self._synced(message["revision"])
            case "upsert":
                for entry in message["checkpoints"]:
                    yield self._upsert(entry)
            case "delete":
                for gone in message["checkpoints"]:
                    yield from self._delete(gone)

    def _difference(self) -> Iterator[Change]:
        snapshot, self._shadow = self._shadow or {}, None
        # The event id is that of the whole snapshot: no single change of it may be resumed from.
        event_id, self.event_id = self.event_id, None
        for gone in [known for known in self._told if known not in snapshot]:
            del self._told[gone]
            yield Change(kind=ChangeKind.DELETE, id=gone, reason="absent")
        for entry in snapshot.values():
            if self._told.get(entry["id"]) != entry["revision"]:
                yield self._upsert(entry)
        self.event_id = event_id

    def _upsert(self, entry: dict[str, Any]) -> Change:
        self._told[entry["id"]] = entry["revision"]
        return Change(kind=ChangeKind.UPSERT, id=entry["id"], entry=entry, event_id=self.event_id)

    def _delete(self, gone: dict[str, Any]) -> Iterator[Change]:
        known = self._told.pop(gone["id"], None)
        # Under a filter the stream deletes what never matched; that is news only to one that may have known it.
        if known is not None or gone["reason"] != "filtered":
            yield Change(kind=ChangeKind.DELETE, id=gone["id"], reason=gone["reason"], event_id=self.event_id)

    def _synced(self, revision: int) -> Change:
        return Change(kind=ChangeKind.SYNCED, revision=revision, event_id=self.event_id)


async def _events(answer: httpx.Response, view: _View) -> AsyncIterator[dict[str, Any]]:
    """The messages of one response. The view's cursor moves with each, before it is told."""
    data: list[str] = []
    async for line in answer.aiter_lines():
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "id":
            view.event_id = value or None
        elif field == "retry" and value.isdigit():
            view.retry_s = int(value) / 1000
        elif not line and data:
            yield msgspec.json.decode("\n".join(data).encode())
            data = []


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        problem = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        problem = None
    problem = problem if isinstance(problem, dict) else {}
    detail = problem.get("detail", f"the daemon answered {answer.status_code}")
    remedy = problem.get("remedy")
    raise ClientError(f"{detail}; {remedy}" if remedy else detail, answer.status_code, problem)


async def _check_async(answer: httpx.Response) -> None:
    if not answer.is_success:
        await answer.aread()
        _check(answer)


def _text(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they are written in a URL; None stands for "not given"."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def _kept_token(state_dir: str) -> str | None:
    try:
        with open(os.path.join(state_dir, _TOKEN_FILE), encoding="ascii") as file:
            return file.read(4096).strip() or None
    except (OSError, UnicodeDecodeError):
        return None
