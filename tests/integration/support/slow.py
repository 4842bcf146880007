"""A slow way to a registry or an engine: what goes through it takes as long as a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_PIECE = 16 * 1024


@contextlib.contextmanager
def slowly(address: str, bytes_per_second: float) -> Iterator[str]:
    """HOST:PORT that leads to the server at `address`, whose answers arrive at that rate on each connection.

    `address` is HOST:PORT, too, or the path of a UNIX socket.
    """
    with socket.create_server(("127.0.0.1", 0)) as door:
        accepting = threading.Thread(target=_accept, args=(door, address, bytes_per_second), daemon=True)
        accepting.start()
        yield f"127.0.0.1:{door.getsockname()[1]}"
        # Wakes the thread, which a close alone does not.
        door.shutdown(socket.SHUT_RDWR)
        accepting.join(10)


def _connect(address: str) -> socket.socket:
    if address.startswith("/"):
        there = socket.socket(socket.AF_UNIX)
        there.connect(address)
        return there
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def _accept(door: socket.socket, address: str, rate: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = door.accept()
            there = _connect(address)
            threading.Thread(target=_relay, args=(client, there, 0.0), daemon=True).start()
            threading.Thread(target=_relay, args=(there, client, rate), daemon=True).start()


def _relay(source: socket.socket, target: socket.socket, rate: float) -> None:
    with contextlib.suppress(OSError), source, target:
        while data := source.recv(_PIECE):
            target.sendall(data)
            if rate:
                time.sleep(len(data) / rate)
        target.shutdown(socket.SHUT_RDWR)
