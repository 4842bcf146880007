"""Taking what arrives in a socket in worker threads, without the reactor's.

Whoever pushes sends as fast as he is read from.  When the reactor's thread receives a piece, and a worker hashes and
writes it, each costs new memory and a change of threads, and is in another processor's cache by then.  A worker that
receives, hashes and writes in turn, always in the same memory, needs two thirds of the time: with eight pushes at once
1.4 seconds of processor time per GB, where it was 2.1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from k3dreg.streaming.file_handles import Handle

# Bytes that are received before they are given on: they stay in a processor's cache while they are hashed and
# written.  512 KiB are no faster.
_BUFFER = 256 * 1024
# Bytes after which a thread is given back though more has come: a disk of 100 MB/s is through with it in 80 ms, and
# then it is another client's turn.
TRIP = 8 * 1024 * 1024
# Seconds after which it is given back: a thread that takes what trickles is one less, and holds up a stop.
_LONGEST = 0.25

# Where the other end is no faster than this one, a thread that waits a little takes more at a time: seconds after which
# it looks again, bytes that it waits for, and seconds that it waits for them once some have come.  A UNIX socket holds
# 208 KiB, which the engine sends in a nap.
_NAP = 0.0002
_ENOUGH = 128 * 1024
_GATHERING = 0.002
# Buffers that nobody uses now; there are as many as were ever used at once.
_free: list[memoryview] = []


def take(socket: Handle, give: Callable[[memoryview], bool], patience: float = 0.0) -> None:
    """Receive what is there and `give` it on, until nothing is, or `give` returns False.

    For `TRIP` bytes and a quarter of a second at most.  `patience`: seconds without a byte until nothing is there.

    For worker threads; the socket must be a non-blocking one, and nobody else may read from it meanwhile.  What is
    given is only valid during the call.  That the connection has ended, or is lost, is left to be noticed by whoever
    reads from it next.

    Raises what `give` raises.
    """
    # The one that was used last, which a processor still has in its cache.
    view = _borrow()
    taken, until = 0, time.monotonic() + _LONGEST
    try:
        with socket.use() as descriptor:
            while taken < TRIP and time.monotonic() < until:
                count = _fill(descriptor, view, patience)
                taken += count
                if not count or not give(view[:count]) or (count < len(view) and not patience):
                    return
    finally:
        _free.append(view)


def _fill(descriptor: int, view: memoryview, patience: float) -> int:
    """As much as is there, up to all of `view`; with patience, as much as is worth the while."""
    filled, waited = 0, 0.0
    while filled < len(view):
        try:
            count = os.readv(descriptor, [view[filled:]])
        except BlockingIOError:
            if filled >= _ENOUGH or waited >= (min(_GATHERING, patience) if filled else patience):
                break
            time.sleep(_NAP)
            waited += _NAP
        except OSError:  # it is lost, which the next to read learns, too
            break
        else:
            if not count:
                break
            waited = waited if filled else 0.0
            filled += count
    return filled


def _borrow() -> memoryview:
    try:
        return _free.pop()
    except IndexError:
        return memoryview(bytearray(_BUFFER))
