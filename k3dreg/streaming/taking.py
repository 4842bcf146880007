"""Taking what arrives in a socket in worker threads, without the reactor's.

Whoever pushes sends as fast as he is read from.  When the reactor's thread receives a piece, and a worker hashes and
writes it, each costs new memory and a change of threads, and is in another processor's cache by then.  A worker that
receives, hashes and writes in turn, always in the same memory, needs two thirds of the time: with eight pushes at once
1.4 seconds of processor time per GB, where it was 2.1.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from k3dreg.streaming.handles import Handle

# Bytes that are received before they are given on: they stay in a processor's cache while they are hashed and
# written.  Each thread that ever took something has so much.
_BUFFER = 512 * 1024
# Bytes after which a thread is given back though more has come: a disk of 100 MB/s is through with it in 80 ms, and
# then it is another client's turn.
TRIP = 8 * 1024 * 1024

_own = threading.local()


def take(socket: Handle, give: Callable[[memoryview], bool]) -> None:
    """Receive what is there and `give` it on, until nothing is, or `give` returns False, or for `TRIP` bytes.

    For worker threads; the socket must be a non-blocking one, and nobody else may read from it meanwhile.  What is
    given is only valid during the call.  That the connection has ended, or is lost, is left to be noticed by whoever
    reads from it next.

    Raises what `give` raises.
    """
    view = _buffer()
    taken = 0
    with socket.use() as descriptor:
        while taken < TRIP:
            count = _fill(descriptor, view)
            taken += count
            if not count or not give(view[:count]):
                return
            if count < len(view):
                return


def _fill(descriptor: int, view: memoryview) -> int:
    """As much as is there, up to all of `view`."""
    filled = 0
    while filled < len(view):
        try:
            count = os.readv(descriptor, [view[filled:]])
        except OSError:  # nothing is there now; or it is lost, which the next to read learns, too
            break
        if not count:
            break
        filled += count
    return filled


def _buffer() -> memoryview:
    """This thread's."""
    try:
        view: memoryview = _own.view
    except AttributeError:
        view = _own.view = memoryview(bytearray(_BUFFER))
    return view
