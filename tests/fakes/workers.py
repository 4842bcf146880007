"""Workers for tests: without threads, and as slow as a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.task import Clock

from k3dreg.oci.errors import StoreError
from k3dreg.streaming.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")


class _NoThreads(Clock):
    """A Clock that is a reactor as far as `Workers` goes."""

    def callFromThread(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)


class InlineWorkers(Workers):
    """Does the work at once, in the caller's thread."""

    clock: Clock

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(_NoThreads())
        self.clock = Clock() if clock is None else clock
        self._running = True

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        self._running = False
        return succeed(None)

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return execute(function, *args, **kwargs) if self._running else fail(StoreError("k3dreg is stopping"))

    def work_all(self) -> None:
        """Do all work that waits."""


class ManualWorkers(InlineWorkers):
    """Keeps the work until the test calls `work`."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self.waiting: list[Callable[[], object]] = []

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        self.waiting.append(lambda: execute(function, *args, **kwargs).addBoth(answer.callback))
        return answer

    def work(self) -> None:
        """Do the piece of work that has waited for longest."""
        self.waiting.pop(0)()

    def work_all(self) -> None:
        while self.waiting:
            self.work()
