"""An HTTP client that connects to the engine, by UNIX socket, TCP, TLS or ssh."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.interfaces import IStreamClientEndpoint as IEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from k3dreg.config.engine_address import EngineAddress, parse_engine_url
from k3dreg.docker.engine_tls import make_connection_creator
from k3dreg.docker.ssh_forward import ForwardedAgent, ForwardedEndpoint, SshForward, ssh_command
from k3dreg.streaming.quiet_pool import quiet_pool

__all__ = ["CONNECT_TIMEOUT", "EngineAddress", "make_agent", "make_pool", "parse_engine_url"]

# Seconds.  A socket of this machine accepts at once or never; over a network, ten seconds are plenty.
CONNECT_TIMEOUT = 10.0
# Seconds for which an idle connection is kept for the next request.  The engine itself never closes idle ones.
IDLE_TIMEOUT = 60
# Idle connections that are kept.  Connections in use are not limited: a request that finds no idle connection opens
# one, so short requests do not wait for long bodies.
IDLE_CONNECTIONS = 8
# Bytes that are received at a time: more than a UNIX socket's buffer holds (net.core.wmem_default, 208 KiB on today's
# kernels), so one read empties the buffer and the engine can fill it again.
_PIECE = 256 * 1024


@implementer(IEndpoint)
class LargeReads:
    """A wrapper around an endpoint, whose connections receive more bytes at a time.

    An engine sends a file in chunks of 32 KiB.  Twisted receives 64 KiB at a time, which takes 1.5 times the processor
    time of 256 KiB.
    """

    def __init__(self, endpoint: IEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect with the wrapped endpoint.  Cancelling stops the attempt."""
        return self._endpoint.connect(protocolFactory).addCallback(_receive_more)


def _receive_more(protocol: IProtocol) -> IProtocol:
    transport = cast(Any, protocol).transport
    if hasattr(transport, "bufferSize"):  # a TLS transport has no such attribute
        transport.bufferSize = _PIECE
    return protocol


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """Leads every URL to the engine's endpoint.  The URL's host is only the value of the `Host` header."""

    def __init__(self, endpoint: IEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IEndpoint:
        return self._endpoint


def make_agent(
    reactor: Any,
    address: EngineAddress,
    *,
    connect_timeout: float = CONNECT_TIMEOUT,
    pool: HTTPConnectionPool | None = None,
    forward: SshForward | None = None,
) -> IAgent:
    """Return an HTTP client that sends every request to the engine at `address`, whatever the URL's host.

    `reactor` connects (UNIX, TCP and names), starts ssh and tells the time.  `connect_timeout` in seconds.

    `pool` keeps idle connections, and `forward` runs ssh for an `ssh://` address.  A caller that wants to close them in
    the end passes its own.  Raises `UsageError` for certificates that cannot be used.
    """
    endpoint: IEndpoint
    if address.ssh:
        if forward is None:
            forward = SshForward(reactor, partial(ssh_command, address, connect_timeout), connect_timeout)
        endpoint = ForwardedEndpoint(reactor, forward, connect_timeout)
    elif address.path:
        endpoint = UNIXClientEndpoint(reactor, address.path, timeout=connect_timeout)
    else:
        endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=connect_timeout)
        if address.tls is not None:
            endpoint = wrapClientTLS(make_connection_creator(address.host, address.tls), endpoint)
    if pool is None:
        pool = make_pool(reactor)
    agent: IAgent = Agent.usingEndpointFactory(reactor, _OneEndpoint(LargeReads(endpoint)), pool)
    return _Uncompressed(agent if forward is None else ForwardedAgent(reactor, agent, forward))


@implementer(IAgent)
class _Uncompressed:
    """Asks the engine for uncompressed answers.

    treq always accepts gzip, and the engine's archive API would then compress archives.  That costs both sides several
    times as much as sending them uncompressed.
    """

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders("accept-encoding", ["identity"])
        requested: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
        return requested


def make_pool(reactor: Any) -> HTTPConnectionPool:
    """Return a pool of idle connections for `make_agent`; its `closeCachedConnections` closes them."""
    pool = quiet_pool(reactor)
    pool.cachedConnectionTimeout = IDLE_TIMEOUT
    pool.maxPersistentPerHost = IDLE_CONNECTIONS
    return pool
