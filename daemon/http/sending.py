"""How one listener's `send()` is driven: stepped by the broadcaster itself where that is safe, else by a task.

A send that does not have to wait is a plain call that happens to be a coroutine; a task for each would double the
cost of a delivery (measured: 14.7 µs against 9.7 µs at 1,000 listeners).
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from starlette.types import Receive, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .frames import Frame

SEND_BUFFER_BYTES = 128 << 10
"""Kernel buffer for each listener. By default one that never reads holds 4 MB of kernel memory."""


class Sender(Protocol):
    """One listener's way out. At most one message is under way."""

    def write(self, frame: Frame) -> bool:
        """Begin to send `frame`; True when it is delivered already, else the sender calls back when to `resume`."""
        ...

    def resume(self) -> bool:
        """Go on with the message under way, after the call back; True when it is delivered."""
        ...

    def abandon(self) -> None:
        """Give up the message under way and cut the connection."""
        ...

    async def until_closed(self, receive: Receive) -> None:
        """Return when the client has gone or the response has ended."""
        ...


SenderFactory = Callable[[Send, Callable[[], None], asyncio.TaskGroup], Sender]
"""(send, call back, task group for those who need tasks) → sender."""


def sender_for(send: Send, on_ready: Callable[[], None], tasks: asyncio.TaskGroup) -> Sender:
    """The sender that fits the server behind `send`.

    Stepping a foreign coroutine outside a task of its own is right only if it never asks for the current task
    (time-outs and cancel scopes do). uvicorn's `send` waits for nothing but one event, and that only while the
    client does not read; of any other server or of middleware between, nothing is assumed.
    """
    cycle = getattr(send, "__self__", None)
    if isinstance(cycle, RequestResponseCycle):
        return ChunkSender(cycle, on_ready)
    if cycle is not None and type(cycle).__module__.startswith("uvicorn.protocols.http."):
        return SteppedSender(send, on_ready, getattr(cycle, "transport", None))
    return TaskSender(send, on_ready, tasks)


class SteppedSender:
    """Runs the coroutine of `send()` by hand, up to where it waits, and again once what it waits for is done."""

    __slots__ = ("_coroutine", "_on_ready", "_send", "_transport")

    def __init__(self, send: Send, on_ready: Callable[[], None], transport: asyncio.Transport | None = None) -> None:
        self._send = send
        self._on_ready = on_ready
        self._transport = transport
        self._coroutine: Coroutine[Any, Any, None] | None = None
        if transport is not None:
            _limit_send_buffer(transport)

    def write(self, frame: Frame) -> bool:
        """See `Sender`."""
        coroutine = self._send(frame.message)
        try:
            waits_for = coroutine.send(None)  # type: ignore[attr-defined]  # typed Awaitable, a coroutine in uvicorn
        except StopIteration:
            return True
        self._coroutine = coroutine  # type: ignore[assignment]
        self._call_back_after(waits_for)
        return False

    def resume(self) -> bool:
        """See `Sender`."""
        assert self._coroutine is not None
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration:
            self._coroutine = None
            return True
        except BaseException:
            self._coroutine = None
            raise
        self._call_back_after(waits_for)
        return False

    def _call_back_after(self, waits_for: "asyncio.Future[Any] | None") -> None:
        if waits_for is None:  # a bare yield: asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(self._on_ready)
        else:
            waits_for.add_done_callback(self._future_done)

    def abandon(self) -> None:
        """See `Sender`."""
        if self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None
        if self._transport is not None:
            # Not close(): that waits for a reader who does not read.
            self._transport.abort()

    async def until_closed(self, receive: Receive) -> None:
        """See `Sender`. uvicorn answers `http.disconnect` also when the response has ended."""
        while (await receive())["type"] != "http.disconnect":
            pass

    def _future_done(self, _: "asyncio.Future[Any]") -> None:
        self._on_ready()


class ChunkSender(SteppedSender):
    """Writes a chunk that is ready to uvicorn's transport, as its `send()` would; a third less CPU for a delivery.

    Whatever is not plain goes by `send()`: while the client does not read, after it has gone, and at the end.
    """

    __slots__ = ("_cycle", "_write")

    def __init__(self, cycle: RequestResponseCycle, on_ready: Callable[[], None]) -> None:
        super().__init__(cycle.send, on_ready, cycle.transport)  # type: ignore[arg-type]  # messages typed more closely
        self._cycle = cycle
        self._write = cycle.transport.write

    def write(self, frame: Frame) -> bool:
        """See `Sender`."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or frame.is_final or not cycle.chunked_encoding:
            return super().write(frame)
        self._write(frame.chunk)
        return True


class TaskSender:
    """Sends in a task for each message; for servers of which nothing is known but ASGI."""

    def __init__(self, send: Send, on_ready: Callable[[], None], tasks: asyncio.TaskGroup) -> None:
        self._send = send
        self._on_ready = on_ready
        self._tasks = tasks
        self._task: asyncio.Task[bool] | None = None
        self._closed = asyncio.Event()

    def write(self, frame: Frame) -> bool:
        """See `Sender`."""
        self._task = self._tasks.create_task(self._deliver(frame.message))
        self._task.add_done_callback(lambda _: self._on_ready())
        return False

    def resume(self) -> bool:
        """See `Sender`."""
        assert self._task is not None
        delivered, self._task = self._task.result(), None
        if not delivered:
            raise ConnectionError("the client has gone")
        return True

    def abandon(self) -> None:
        """See `Sender`. What ASGI allows: the request ends, and the server closes the connection."""
        if self._task is not None:
            self._task.cancel()
        self._closed.set()

    async def until_closed(self, receive: Receive) -> None:
        """See `Sender`."""
        disconnect = asyncio.ensure_future(_disconnected(receive))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((disconnect, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (disconnect, closed):
                task.cancel()
            await asyncio.gather(disconnect, closed, return_exceptions=True)

    async def _deliver(self, message: dict[str, Any]) -> bool:
        try:
            await self._send(message)
        except Exception:  # noqa: BLE001 - whatever a foreign server raises here means that the client has gone
            return False
        if not message["more_body"]:
            self._closed.set()
        return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _limit_send_buffer(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        except OSError:
            return  # the peer has gone already; the stream finds out by itself
