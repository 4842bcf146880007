"""Tests of k3dreg.streaming.quiet_pool."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from k3dreg.docker.endpoint import EngineAddress, make_agent, make_pool

reactor = cast(Any, _reactor)


class QuietPoolTests(TestCase):
    async def test_a_connection_is_not_logged(self) -> None:
        events: list[LogEvent] = []
        path = self.mktemp()
        site = cast(Any, Site(Resource()))
        site.noisy = False
        port = await UNIXServerEndpoint(reactor, path).listen(site)
        self.addCleanup(port.stopListening)
        pool = make_pool(reactor)
        observer = cast(Any, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        response = await make_agent(reactor, EngineAddress(path=path), pool=pool).request(b"HEAD", b"http://engine/")
        await pool.closeCachedConnections()
        self.assertEqual(response.code, 404)
        self.assertEqual([event["log_format"] for event in events if "factory" in event.get("log_format", "")], [])
