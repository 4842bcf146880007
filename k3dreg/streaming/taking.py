"""Taking what arrives in a socket in worker threads, without the reactor's.

Whoever pushes sends as fast as he is read from.  When the reactor's thread receives a piece, and a worker hashes and
writes it, each costs new memory and a change of threads, and is in another processor's cache by then.  A worker that
receives, hashes and writes in turn, always in the same memory, needs two thirds of the time: with eight pushes at once
1.4 seconds of processor time per GB, where it was 2.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from k3dreg.streaming.handles import Handle

# Bytes that are received before they are given on: they stay in a processor's cache while they are hashed and
# written.
_BUFFER = 512 * 1024
# Bytes after which a thread is given back though more has come: a disk of 100 MB/s is through with it in 80 ms, and
# then it is another client's turn.
TRIP = 8 * 1024 * 1024

# Buffers that nobody uses now; there are as many as were ever used at once.
_free: list[memoryview] = []


def take(socket: Handle, give: Callable[[memoryview], bool]) -> None:
    """Receive what is there and `give` it on, until nothing is, or `give` returns False, or for `TRIP` bytes.

    For worker threads; the socket must be a non-blocking one, and nobody else may read from it meanwhile.  What is
    given is only valid during the call.  That the connection has ended, or is lost, is left to be noticed by whoever
    reads from it next.

    Raises what `give` raises.
    """
    # The one that was used last, which a processor still has in its cache.
    view = _borrow()
    taken = 0
    try:
        with socket.use() as descriptor:
            while taken < TRIP:
                count = _fill(descriptor, view)
                taken += count
                if not count or not give(view[:count]) or count < len(view):
                    return
    finally:
        _free.append(view)


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


def _borrow() -> memoryview:
    try:
        return _free.pop()
    except IndexError:
        return memoryview(bytearray(_BUFFER))
