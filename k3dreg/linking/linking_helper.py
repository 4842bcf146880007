"""The program of the helper container that links layers for a k3dreg which cannot reach Docker's files itself.

It sends k3dreg one end of each of a few connections, and does what comes through them, until all of them have ended:
with k3dreg, or when k3dreg needs no helper any more.  So its rights end with k3dreg, however that ends.

Its calls block; it has a thread for each connection.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import traceback
from threading import Thread

from k3dreg.engine_files.directory_sender import SECRET, connect
from k3dreg.linking import linking_messages as messages
from k3dreg.linking.engine_host import EngineHost
from k3dreg.linking.linker import Linker, LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.linking.linking_messages import Request

# The directory of the container below which files of the engine's host have their own paths.
ROOT = "/engine"


def main(secret: str, name: str, user: str, owner: str, root: str = ROOT) -> None:
    """Serve the k3dreg that listens at `name`, see `connect`, until it has closed all connections.

    `owner` is its ID, see `Linker`.  Raises `OSError` when k3dreg cannot be reached.
    """
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(messages.AT_ONCE)]
    with connect(secret, name, int(user)) as connection:
        socket.send_fds(connection, [b"."], [theirs.fileno() for _, theirs in pairs])
    linker = Linker("", owner, host=EngineHost(root))
    threads = []
    for own, theirs in pairs:
        theirs.close()
        threads.append(Thread(target=serve, args=(own, linker)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def serve(connection: socket.socket, linker: Linker) -> None:
    """Answer the requests of a connection until it ends, and close it."""
    with connection:
        try:
            while request := connection.recv(messages.LARGEST):
                # A request is cancelled too late when its answer has been sent meanwhile.
                if request != messages.CANCEL:
                    connection.send(messages.encode_answer(_outcome(request, linker, connection)))
        except OSError:
            return  # k3dreg has ended


def _outcome(data: bytes, linker: Linker, connection: socket.socket) -> LinkingResult | CannotLink:
    cancelled = select.poll()
    cancelled.register(connection, select.POLLIN)

    def proceed() -> None:
        if cancelled.poll(0):
            raise CannotLink("k3dreg cancelled the request")

    try:
        request = Request.parse(data)
        match request:
            case Request(task=messages.LINK, info=info) if info is not None:
                return linker.link(info, request.node, request.repository, request.chain, proceed)
            case Request(task=messages.EXAMINE, info=info) if info is not None:
                linker.examine(info, request.node)
            case Request(task=messages.CLEAN_UP):
                linker.clean_up(request.node)
            case _:
                return CannotLink("the helper container does not know what to do: is it of k3dreg's version?")
    except CannotLink as error:
        return error
    except Exception as error:  # noqa: BLE001  (a defect with one image must not end the work on others)
        traceback.print_exc()
        return CannotLink(f"linking failed in the helper container: {type(error).__name__}")
    return LinkingResult()


if __name__ == "__main__":
    main(os.environ[SECRET], *sys.argv[1:])
