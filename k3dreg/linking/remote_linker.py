"""Have layers linked by a helper, to which this process has connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import EngineInfo
from k3dreg.linking import linking_messages as messages
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.linking.linking_messages import Request
from k3dreg.oci.digest import Digest

# Seconds between two questions whether the work shall go on.
_STEP = 0.1
# Seconds in which the helper must have stopped what was cancelled: it may be committing a large layer to a node.
_MAX_WAIT = 70.0
# Seconds that the helper may take for other work than linking: each question to a containerd has ten.
_LONGEST = 60.0
_ENDED = "the helper container has ended"


class RemoteLinker:
    """Does what a `Linker` does, in the helper `linking_helper`.

    Its methods block, and may be called in as many threads at once as there are connections.  Call `close` at the end.
    """

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        """`connections` now belong to this object."""
        self._lock = threading.Lock()
        self._idle = list(connections)
        self._busy: set[socket.socket] = set()
        self._over = threading.Event()

    def link(
        self,
        info: EngineInfo,
        node: Node,
        repository: str,
        chain: Sequence[Digest],
        proceed: Callable[[], None] = lambda: None,
    ) -> LinkingResult:
        """Link layers as `Linker.link` does.  A helper that does not stop when `proceed` has raised counts as ended."""
        return self._ask(Request(messages.LINK, node, info, repository, tuple(chain)), proceed)

    def examine(self, info: EngineInfo, node: Node) -> None:
        """Raise `CannotLink` if no layers can be linked into the node.  Changes nothing.  Blocks."""
        self._ask(Request(messages.EXAMINE, node, info), _for(_LONGEST))

    def clean_up(self, node: Node) -> None:
        """Remove what an earlier run of this k3dreg left incomplete in the node.  Raises `CannotLink`.  Blocks."""
        self._ask(Request(messages.CLEAN_UP, node), _for(_LONGEST))

    def is_alive(self) -> bool:
        """Return whether the helper can be used.  Does not block."""
        with self._lock:
            for connection in self._idle:
                # A helper that waits for requests sends nothing: what can be read is the connection's end.
                connection.setblocking(False)
                try:
                    connection.recv(1, socket.MSG_PEEK)
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                self._over.set()
            return not self._over.is_set()

    def close(self) -> None:
        """End all connections, which ends the helper.  It stops what it does, and calls under way raise."""
        with self._lock:
            self._over.set()
            # A connection that is in use is closed by its thread: another file could get its number before.
            for connection in self._busy:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            while self._idle:
                self._idle.pop().close()

    def _ask(self, request: Request, proceed: Callable[[], None]) -> LinkingResult:
        data = request.encode()
        with self._lock:
            if self._over.is_set():
                raise CannotLink(_ENDED)
            if not self._idle:
                raise CannotLink("the helper container is busy")
            connection = self._idle.pop()
            self._busy.add(connection)
        answer, stopped = b"", None
        try:
            connection.settimeout(_STEP)
            connection.send(data)
            answer, stopped = _answer(connection, proceed)
        except OSError as error:
            raise CannotLink(f"{_ENDED}: {error.strerror or error}") from error
        finally:
            with self._lock:
                self._busy.remove(connection)
                if not answer:
                    self._over.set()
                if self._over.is_set():
                    connection.close()
                else:
                    self._idle.append(connection)
        if stopped is not None:
            raise stopped
        if not answer:
            raise CannotLink(_ENDED)
        return messages.parse_answer(answer)


def _answer(connection: socket.socket, proceed: Callable[[], None]) -> tuple[bytes, CannotLink | None]:
    """Return the helper's answer, and what `proceed` raised, which cancels the request.

    The answer is b"" if the helper has ended, or does not stop when it is told to.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            return connection.recv(messages.LARGEST), None
        try:
            proceed()
        except CannotLink as error:
            connection.settimeout(_MAX_WAIT)
            connection.send(messages.CANCEL)
            with contextlib.suppress(TimeoutError):
                return connection.recv(messages.LARGEST), error
            return b"", error


def _for(seconds: float) -> Callable[[], None]:
    """Return a function that raises `CannotLink` after `seconds`."""
    end = time.monotonic() + seconds

    def proceed() -> None:
        if time.monotonic() > end:
            raise CannotLink("the helper container does not answer")

    return proceed
