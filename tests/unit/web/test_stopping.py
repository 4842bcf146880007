"""What a client hears of a stop in the middle of its request."""

from __future__ import annotations

import contextlib
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from k3dreg.web.connections import CLOSING, FINISHING
from k3dreg.web.site import RegistrySite, make_site
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire, WireTestCase, request


class SlowRegistry(FakeRegistry):
    """Does not find what it is asked for before it is cancelled so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.asked = 0
        self._times = times

    async def manifest(self, *arguments: Any) -> Any:
        """Wait."""
        self.asked += 1
        for _ in range(self._times - 1):
            with contextlib.suppress(CancelledError):
                await Deferred()
        await Deferred()


class StoppingTests(WireTestCase):
    timeout = 6

    async def asking(self, times: int) -> tuple[Wire, RegistrySite, Clock]:
        clock, registry = Clock(), SlowRegistry(times)
        site = make_site(registry, clock)
        wire = await self.connect(self.listen(site))
        wire.transport.write(request("GET", "/v2/app/manifests/1"))
        while not registry.asked:
            await self.turn()
        return wire, site, clock

    async def test_a_request_under_way_is_refused_in_the_end_and_its_connection_closed(self) -> None:
        wire, site, clock = await self.asking(1)
        stopping = Deferred.fromCoroutine(site.connections.shutdown())
        clock.advance(FINISHING)
        head = await wire.head()
        self.assertEqual((head.status, head.headers["connection"]), (503, "close"))
        await wire.closed()
        await stopping

    async def test_the_connection_of_one_that_does_not_end_is_aborted(self) -> None:
        wire, site, clock = await self.asking(2)
        stopping = Deferred.fromCoroutine(site.connections.shutdown())
        clock.advance(FINISHING)
        clock.advance(CLOSING)
        await wire.closed()
        await stopping
        self.assertEqual(wire.received, b"")

    async def test_an_idle_connection_is_closed_at_once(self) -> None:
        site = make_site(FakeRegistry(), Clock())
        wire = await self.connect(self.listen(site))
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)
        await site.connections.shutdown()
        await wire.closed()
