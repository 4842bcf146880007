"""Tests of k3dreg.docker.endpoint."""

from typing import Any, cast

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from k3dreg.config.engine_address import TlsMaterial
from k3dreg.docker.endpoint import CONNECT_TIMEOUT, EngineAddress, LargeReads, make_agent, parse_engine_url
from k3dreg.oci.errors import UsageError


@pytest.mark.parametrize(
    ("url", "address", "spelled"),
    [
        ("unix:///run/docker.sock", EngineAddress(path="/run/docker.sock"), "unix:///run/docker.sock"),
        ("tcp://engine:2376", EngineAddress(host="engine", port=2376), "tcp://engine:2376"),
        ("tcp://engine", EngineAddress(host="engine", port=2375), "tcp://engine:2375"),
        ("http://10.0.0.1:80/", EngineAddress(host="10.0.0.1", port=80), "tcp://10.0.0.1:80"),
        ("tcp://[::1]:2375", EngineAddress(host="::1", port=2375), "tcp://[::1]:2375"),
        ("https://engine", EngineAddress(host="engine", port=2376, tls=TlsMaterial()), "tcp://engine:2376"),
        ("ssh://engine", EngineAddress(host="engine", ssh=True), "ssh://engine"),
        (
            "ssh://me@engine:2222/run/docker.sock",
            EngineAddress(host="engine", port=2222, ssh=True, user="me", path="/run/docker.sock"),
            "ssh://me@engine:2222/run/docker.sock",
        ),
    ],
)
def test_the_forms_of_docker_host_are_understood(url: str, address: EngineAddress, spelled: str) -> None:
    assert parse_engine_url(url) == address
    assert str(address) == spelled


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/run/docker.sock",
        "unix://",
        "unix://run/docker.sock",
        "unix:///run/docker.sock?x=1",
        "tcp://",
        "tcp://:2375",
        "tcp://engine:0",
        "tcp://engine:99999",
        "tcp://engine:port",
        "tcp://user@engine",
        "tcp://engine/path",
        "tcp://[::1",
        "ssh://user:password@engine",
        "ssh://-oProxyCommand=x",
        "ssh://-l@engine",
        "npipe:////./pipe/docker_engine",
        "fd://",
    ],
)
def test_anything_else_gets_a_usage_line(url: str) -> None:
    with pytest.raises(UsageError, match="use unix://"):
        parse_engine_url(url)


class Agents(SynchronousTestCase):
    def test_every_request_goes_to_the_socket_whatever_its_url_says(self) -> None:
        reactor = MemoryReactorClock()
        agent = make_agent(reactor, EngineAddress(path="/run/docker.sock"))
        for url in (b"http://engine/_ping", b"http://elsewhere.example/_ping"):
            agent.request(b"GET", url)
        self.assertEqual(
            [(path, timeout) for path, _, timeout, _ in reactor.unixClients],
            [("/run/docker.sock", CONNECT_TIMEOUT)] * 2,
        )

    def test_a_request_that_waits_does_not_hold_up_others(self) -> None:
        reactor = MemoryReactorClock()
        agent = make_agent(reactor, EngineAddress(path="/run/docker.sock"))
        for _ in range(50):
            agent.request(b"GET", b"http://engine/events")
        self.assertEqual(len(reactor.unixClients), 50)

    def test_tcp_addresses_are_connected_to_by_tcp(self) -> None:
        reactor = MemoryReactorClock()
        make_agent(reactor, EngineAddress(host="127.0.0.1", port=2375)).request(b"GET", b"http://engine/_ping")
        self.assertEqual([client[:2] for client in reactor.tcpClients], [("127.0.0.1", 2375)])


class LargeReadsTests(TestCase):
    async def test_more_than_twisted_does_is_received_at_a_time(self) -> None:
        reactor = cast(Any, _reactor)
        path = self.mktemp()
        port = await UNIXServerEndpoint(reactor, path).listen(Factory.forProtocol(Protocol))
        self.addCleanup(port.stopListening)
        endpoint = LargeReads(UNIXClientEndpoint(reactor, path))
        protocol = cast(Any, await endpoint.connect(Factory.forProtocol(Protocol)))
        self.assertEqual(protocol.transport.bufferSize, 256 * 1024)
        protocol.transport.abortConnection()
