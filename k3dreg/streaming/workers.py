"""Threads for disk I/O and hashing, so that the reactor never waits for either."""

from __future__ import annotations

from collections.abc import Callable
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

# More threads than processors, because most of the work waits for a disk.  Beyond eight nothing was gained: eight
# connections at once, one read each, already move more than the reactor's one thread can send.
THREADS = 8


class _Pool(Protocol):
    """ThreadPool as it is used here; Twisted's own annotations leave the callback's types open."""

    def callInThreadWithCallback(
        self, ended: Callable[[bool, Any], None], function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _AbandonedPool(ThreadPool):
    """A pool whose threads do not keep the process alive."""

    threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]


class Workers:
    """A bounded pool of threads of our own: the reactor's is also what name lookups wait in.

    Work that may take long although nothing is wrong with the disk (it asks a server, or checks a password) has a pool
    of its own, so that blobs never wait for it.

    `clock` is the reactor's, for those who are given workers and need the time too.

    All methods but `from_thread` are for the reactor's thread.
    """

    clock: IReactorTime

    def __init__(self, reactor: Any, threads: int = THREADS, *, name: str = "k3dreg", abandoning: bool = False) -> None:
        """`reactor` provides `IReactorFromThreads` and `IReactorTime`.

        `abandoning`: nothing depends on the end of the work but its answer, so `stop` does not wait for it.
        """
        self.clock = reactor
        self._reactor: IReactorFromThreads = reactor
        self._abandoning = abandoning
        self._pool = cast(_Pool, (_AbandonedPool if abandoning else ThreadPool)(0, threads, name=name))
        self._running = False
        # Answers to work that has not ended.
        self._under_way: set[Deferred[Any]] = set()
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """Take work.  Threads are made as they are needed."""
        if not self._running:
            self._running = True
            self._pool.start()

    def stop(self) -> Deferred[None]:
        """Take no more work, and fire when the last piece has ended and every thread is gone.

        Work cannot be interrupted: what runs is waited for.  An `abandoning` pool leaves it running, does not begin
        what waits, and answers both with `StoreError`.  Stopping what is not running is no error.
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
        # Joining the threads blocks, so it is done when they are idle and takes no time.
        stopped.addCallback(lambda _: self._pool.stop())
        if not self._under_way:
            stopped.callback(None)
        else:
            self._idle = stopped
        return stopped

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` in a worker thread; fires with what it returns or raises.

        Work waits its turn, first come, first served.  Fails with `StoreError` when the workers are not running.

        Cancelling gives up the answer, not the work: it runs, or will run, to its end all the same.  So whatever it
        touches (a file descriptor, a buffer, a half-written file) must stay valid until then; whoever cleans up
        after a cancelled piece of work needs a lock that the work holds too.
        """
        if not self._running:
            return fail(StoreError("k3dreg is stopping"))
        answer: Deferred[T] = Deferred()
        self._under_way.add(answer)

        def ended(success: bool, result: T | Failure) -> None:
            # In the worker thread.
            self._reactor.callFromThread(self._deliver, answer, result)

        self._pool.callInThreadWithCallback(ended, self._work, function, *args, **kwargs)
        return answer

    def acquire(
        self, function: Callable[P, T], release: Callable[[T], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """As `run`, for a `function` that returns a resource.

        When the Deferred is cancelled before the resource is there, nothing else refers to the resource, so it is
        passed to `release` in a worker thread.
        """
        taken: Deferred[T] = Deferred(lambda _: given_up.append(True))
        given_up: list[bool] = []

        def deliver(result: T | Failure) -> None:
            if not given_up:
                taken.callback(result)  # a Failure errbacks
            elif isinstance(result, Failure):
                log.debug("cancelled work failed: {error}", error=result.getErrorMessage())
            else:
                self.clean_up(release, result)

        self.run(function, *args, **kwargs).addBoth(deliver)
        return taken

    def clean_up(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """As `spare`, for what has to be done even when the workers are stopped: then it is done here and now."""
        if self._running:
            self.spare(function, *args, **kwargs)
        else:
            function(*args, **kwargs)

    def spare(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function` in a worker thread when nobody waits for the answer.  That it failed is logged."""
        if self._running:
            self.run(function, *args, **kwargs).addErrback(_log_failure)

    def from_thread(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """The way back: from a worker thread, call `function` in the reactor's, some time soon."""
        self._reactor.callFromThread(function, *args, **kwargs)

    def _work(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a piece of work.  In the worker thread."""
        if self._abandoning and not self._running:
            raise StoreError("k3dreg is stopping")
        return function(*args, **kwargs)

    def _deliver(self, answer: Deferred[T], result: T | Failure) -> None:
        if answer not in self._under_way:  # it was abandoned
            return
        self._under_way.remove(answer)
        if not self._under_way and self._idle is not None:
            idle, self._idle = self._idle, None
            self._reactor.callFromThread(idle.callback, None)  # after whoever waits for this very answer
        if answer.called and isinstance(result, Failure):
            log.debug("cancelled work failed: {error}", error=result.getErrorMessage())
        answer.callback(result)  # a Failure errbacks; an answer that was given up is ignored by the Deferred


def _log_failure(failure: Failure) -> None:
    log.failure("work in the background failed", failure=failure)
