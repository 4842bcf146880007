"""Work on the names that the engine's images get, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker.events import follow_images
from k3dreg.docker.interfaces import IEngine, IImageNames
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.reporting.logger import make_logger

log = make_logger()

# Seconds until k3dreg asks again for the events of an engine that does not answer.
_AGAIN = 2.0
# Seconds until k3dreg asks again for the events of an engine that refuses them; its list of images is read as often.
_REFUSED = 60.0


class NewNames:
    """Follows the engine's events and calls `work` with the names that images get, from `start` to `stop`."""

    def __init__(
        self,
        engine: IEngine,
        names: IImageNames,
        is_wanted: Callable[[str], bool],
        work: Callable[[str], Awaitable[None]],
        clock: IReactorTime,
    ) -> None:
        """`work` is called with one name at a time, as the engine writes it, if `is_wanted` returns True for it.

        It is called with every wanted name of the engine's when k3dreg does not know which are new: at the start, after
        the engine was not reachable, and after an event without a name.
        """
        self._engine = engine
        self._names = names
        self._is_wanted = is_wanted
        self._work = work
        self._clock = clock
        self._look_at_all = False
        self._named: dict[str, None] = {}  # names to work on, in the order of their events
        self._woken: Deferred[None] | None = None
        self._running: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._running:
            return
        for running in map(Deferred.fromCoroutine, (self._listen(), self._work_on_all())):
            running.addErrback(lambda failure: failure.trap(CancelledError) and None)
            running.addErrback(lambda failure: log.failure("following images has stopped", failure=failure))
            self._running.append(running)

    def stop(self) -> None:
        """Cancel `work`, and call it no more until `start`."""
        for running in self._running:
            running.cancel()
        self._running.clear()
        self._woken = None

    async def _listen(self) -> None:
        complaint = ""
        while True:
            after = _AGAIN
            try:
                await follow_images(self._engine, self._heard)
                complaint = ""
            except EngineUnavailable:
                pass  # `engine_watch` logs it
            except EngineError as error:
                after = _REFUSED
                self._heard("")
                if str(error) != complaint:
                    complaint = str(error)
                    log.warn("Docker does not report changes of its images: {error}", error=error)
            await deferLater(self._clock, after)

    def _heard(self, name: str) -> None:
        if not name:
            self._look_at_all = True
        elif self._is_wanted(name):
            self._named[name] = None
        else:
            return
        woken, self._woken = self._woken, None
        if woken is not None:
            woken.callback(None)

    async def _work_on_all(self) -> None:
        while True:
            if self._look_at_all:
                self._look_at_all = False
                await self._look()
            elif self._named:
                name = next(iter(self._named))
                del self._named[name]
                await self._work(name)
            else:
                self._woken = Deferred()
                await self._woken

    async def _look(self) -> None:
        """Queue every wanted name that images have."""
        try:
            for repository, tag in await self._names.names():
                self._heard(f"{repository}:{tag}")
        except EngineError as error:
            log.debug("Docker's images cannot be listed: {error}", error=error)
