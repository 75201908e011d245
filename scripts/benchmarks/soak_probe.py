"""A process of its own that measures from the outside: rename to event, and the answer of a list. No imports of ours.

Called with a port, a directory of the tree, a checkpoint to copy and a count; prints one JSON object.
"""

import http.client
import json
import os
import shutil
import socket
import sys
import time

DEADLINE_S = 120.0
PAUSE_S = 0.02
LIST = "/checkpoints?page_size=100"
_REQUEST = b"GET /checkpoints/events?include_invalid=true HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"
_TAIL = 200
"""Bytes kept between two reads: a name may be cut in two."""


def main(port: int, directory: str, template: str, count: int) -> None:
    """Rename `count` files in, one after the other, each waiting for its event; then ask as often for a list."""
    os.makedirs(directory, exist_ok=True)
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as listener:
        listener.sendall(_REQUEST % port)
        _wait_for(listener, b'"complete"')
        waits = [_rename_one(listener, directory, template, number) for number in range(count)]
    found = [wait for wait in waits if wait is not None]
    lists = _lists(port, count)
    print(json.dumps({"rename_ms": found, "lost": len(waits) - len(found), "list_ms": lists}))
    shutil.rmtree(directory, ignore_errors=True)


def _rename_one(listener: socket.socket, directory: str, template: str, number: int) -> float | None:
    name = f"probe-{os.getpid()}-{number}.ckpt"
    prepared = os.path.join(directory, f".{name}.part")
    shutil.copyfile(template, prepared)
    renamed = time.monotonic()
    os.rename(prepared, os.path.join(directory, name))
    if not _wait_for(listener, f'/{name}"'.encode()):
        return None
    took_ms = (time.monotonic() - renamed) * 1e3
    time.sleep(PAUSE_S)
    return took_ms


def _wait_for(listener: socket.socket, what: bytes) -> bool:
    end = time.monotonic() + DEADLINE_S
    tail = b""
    while time.monotonic() < end:
        listener.settimeout(max(0.01, end - time.monotonic()))
        try:
            data = listener.recv(1 << 18)
        except TimeoutError:
            return False
        if not data:
            return False
        tail += data
        if what in tail:
            return True
        tail = tail[-_TAIL:]
    return False


def _lists(port: int, count: int) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    took = []
    for _ in range(count):
        begin = time.monotonic()
        connection.request("GET", LIST)
        connection.getresponse().read()
        took.append((time.monotonic() - begin) * 1e3)
        time.sleep(PAUSE_S)
    connection.close()
    return took


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
