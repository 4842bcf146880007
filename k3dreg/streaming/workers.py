"""Worker threads for disk I/O and hashing, so that neither blocks the reactor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from threading import Thread
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger

P = ParamSpec("P")
T = TypeVar("T")

log = make_logger()

# More threads than processors, because most work waits for a disk.  More than eight bring nothing: eight connections
# with one read each already produce more bytes than the reactor's one thread can send.
THREADS = 8


class _Pool(Protocol):
    """The used part of `ThreadPool`, because Twisted's annotations do not type the callback."""

    def callInThreadWithCallback(
        self, ended: Callable[[bool, Any], None], function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _AbandonedPool(ThreadPool):
    """A pool whose threads do not keep the process alive."""

    threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]


class Workers:
    """A bounded pool of worker threads, separate from the reactor's, which name lookups use.

    Create a second pool for work that takes long for other reasons than the disk, such as asking a server or checking
    a password, so that blobs do not wait for it.

    `clock` is the reactor, for code that has workers and needs the time, too.

    Call all methods but `from_thread` in the reactor's thread.  Call `start` first and `stop` at the end.
    """

    clock: IReactorTime

    def __init__(self, reactor: Any, threads: int = THREADS, *, name: str = "k3dreg", abandoning: bool = False) -> None:
        """`reactor` provides `IReactorFromThreads` and `IReactorTime`.

        `abandoning`: the work has no effects besides its answer, so `stop` does not wait for it.
        """
        self.clock = reactor
        self._reactor: IReactorFromThreads = reactor
        self._abandoning = abandoning
        self._pool = cast(_Pool, (_AbandonedPool if abandoning else ThreadPool)(0, threads, name=name))
        self._running = False
        # The Deferreds of work that has not ended.
        self._under_way: set[Deferred[Any]] = set()
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """Accept work.  Threads are created as they are needed."""
        if not self._running:
            self._running = True
            self._pool.start()

    def stop(self) -> Deferred[None]:
        """Refuse new work; fires when all work has ended and every thread has exited.

        Work cannot be interrupted, so this waits for it.  An `abandoning` pool fires at once instead: it fails all
        Deferreds with `StoreError`, does not start queued work, and leaves running work to its daemon threads.
        Does nothing if the pool is not running.
        """
        if not self._running:
            return succeed(None)
        self._running = False
        if self._abandoning and self._under_way:
            abandoned, self._under_way = self._under_way, set()
            for answer in abandoned:
                answer.errback(StoreError("k3dreg is stopping"))
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        # `ThreadPool.stop` joins the threads, which blocks the reactor: it is called only once they are idle.
        stopped.addCallback(lambda _: self._pool.stop())
        if not self._under_way:
            stopped.callback(None)
        else:
            self._idle = stopped
        return stopped

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` in a worker thread; fires with what it returns or raises.

        Work starts in the order of the calls.  Fails with `StoreError` if the workers are not running.

        Cancelling drops the answer but does not stop the work, not even if it is still queued.  So whatever it uses (a
        file descriptor, a buffer, a half-written file) must stay valid until it ends.  Code that cleans up after
        cancelled work needs a lock that the work holds, too.
        """
        if not self._running:
            return fail(StoreError("k3dreg is stopping"))
        answer: Deferred[T] = Deferred()
        self._under_way.add(answer)

        def ended(success: bool, result: T | Failure) -> None:
            # Called in the worker thread.
            self._reactor.callFromThread(self._deliver, answer, result)

        self._pool.callInThreadWithCallback(ended, self._work, function, *args, **kwargs)
        return answer

    def acquire(
        self, function: Callable[P, T], release: Callable[[T], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Call `function`, which returns a resource such as an open file, in a worker thread; else as `run`.

        If the Deferred is cancelled before the resource exists, `release` is called with the resource in a worker
        thread, because no caller will close it.
        """
        taken: Deferred[T] = Deferred(lambda _: cancelled.append(True))
        cancelled: list[bool] = []

        def deliver(result: T | Failure) -> None:
            if not cancelled:
                taken.callback(result)  # a Failure errbacks
            elif isinstance(result, Failure):
                log.debug("cancelled work failed: {error}", error=result.getErrorMessage())
            else:
                self.clean_up(release, result)

        self.run(function, *args, **kwargs).addBoth(deliver)
        return taken

    def clean_up(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function` in a worker thread and log its failure; call it right here if the workers are stopped.

        For clean-up that must not be skipped, such as closing a file.  After a stop, it raises what `function` raises.
        """
        if self._running:
            self.spare(function, *args, **kwargs)
        else:
            function(*args, **kwargs)

    def spare(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function` in a worker thread and log its failure; skip it if the workers are stopped."""
        if self._running:
            self.run(function, *args, **kwargs).addErrback(_log_failure)

    def from_thread(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function` in the reactor's thread, soon.  For use in worker threads."""
        self._reactor.callFromThread(function, *args, **kwargs)

    def _work(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the worker thread, unless the pool has abandoned it."""
        if self._abandoning and not self._running:
            raise StoreError("k3dreg is stopping")
        return function(*args, **kwargs)

    def _deliver(self, answer: Deferred[T], result: T | Failure) -> None:
        if answer not in self._under_way:  # it was abandoned
            return
        self._under_way.remove(answer)
        if not self._under_way and self._idle is not None:
            idle, self._idle = self._idle, None
            self._reactor.callFromThread(idle.callback, None)  # after the callbacks of `answer`
        if answer.called and isinstance(result, Failure):
            log.debug("cancelled work failed: {error}", error=result.getErrorMessage())
        answer.callback(result)  # a Failure errbacks; a cancelled Deferred ignores it


@asynccontextmanager
async def running_workers(reactor: Any, threads: int = THREADS) -> AsyncIterator[Workers]:
    """Start worker threads, and stop them at the end."""
    workers = Workers(reactor, threads)
    workers.start()
    try:
        yield workers
    finally:
        await workers.stop()


def _log_failure(failure: Failure) -> None:
    log.failure("work in the background failed", failure=failure)
