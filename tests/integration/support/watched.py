"""A way to an engine by which one sees what it is asked."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

_REQUEST = re.compile(rb"^([A-Z]+) (?:/v1\.\d+)?(/\S*) HTTP/1\.1\r$", re.M)


@contextlib.contextmanager
def watched(path: str, door: Path) -> Iterator[list[str]]:
    """`door` becomes a UNIX socket that leads to the engine's at `path`; the list grows by each request."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(door))
        server.listen()
        accepting = threading.Thread(target=_accept, args=(server, path, asked), daemon=True)
        accepting.start()
        yield asked
        # Wakes the thread, which a close alone does not.
        server.shutdown(socket.SHUT_RDWR)
        accepting.join(10)


def _accept(server: socket.socket, path: str, asked: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            there = socket.socket(socket.AF_UNIX)
            try:
                there.connect(path)
            except OSError:  # the engine is down
                client.close()
                there.close()
                continue
            threading.Thread(target=_relay, args=(client, there, asked), daemon=True).start()
            threading.Thread(target=_relay, args=(there, client, None), daemon=True).start()


def _relay(source: socket.socket, target: socket.socket, asked: list[str] | None) -> None:
    with contextlib.suppress(OSError), source, target:
        while data := source.recv(64 * 1024):
            if asked is not None:
                asked += [f"{method.decode()} {path.decode()}" for method, path in _REQUEST.findall(data)]
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
