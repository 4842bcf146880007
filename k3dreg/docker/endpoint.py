"""Where the engine listens, and an HTTP client that connects there."""

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

# Seconds.  A socket of this machine answers at once or not at all; over a network ten are plenty.
CONNECT_TIMEOUT = 10.0
# Seconds that an idle connection is kept for the next request.  The engine itself never closes idle ones.
IDLE_TIMEOUT = 60
# Idle connections kept.  It limits nothing that is in use: every request that finds none idle opens its own,
# so long bodies do not hold up short questions.
IDLE_CONNECTIONS = 8
# Bytes that are received at a time.  About what the kernel holds of a UNIX socket (net.core.wmem_default, 208 KiB on
# all of today's): so the engine finds it empty when it is woken.
_PIECE = 256 * 1024


@implementer(IEndpoint)
class LargeReads:
    """An endpoint that connects as another does, and whose connections receive more at a time.

    An engine sends a file in chunks of 32 KiB.  To receive 64 KiB at a time, as Twisted does, costs half as much
    processor time again as to receive 256 KiB.
    """

    def __init__(self, endpoint: IEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect.  Cancelling gives up."""
        return self._endpoint.connect(protocolFactory).addCallback(_receive_more)


def _receive_more(protocol: IProtocol) -> IProtocol:
    transport = cast(Any, protocol).transport
    if hasattr(transport, "bufferSize"):  # that of TLS has none
        transport.bufferSize = _PIECE
    return protocol


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """Every URL leads to the engine: the host in it is only a name for the `Host` header."""

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
    """An HTTP client whose every request goes to the engine at `address`.

    `reactor` connects (UNIX, TCP and names), starts ssh and tells the time.  `connect_timeout` in seconds.
    Raises `UsageError` for certificates that cannot be used.  `pool` keeps idle connections; give one to close them in
    the end.  `forward` is in place of an ssh of its own.
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
    """Asks for nothing to be compressed.

    treq always says that it takes gzip, and the engine's archive API then compresses what it sends, which costs both
    sides several times what the sending does.
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
    """The pool of idle connections that `make_agent` uses; `closeCachedConnections` ends them."""
    pool = quiet_pool(reactor)
    pool.cachedConnectionTimeout = IDLE_TIMEOUT
    pool.maxPersistentPerHost = IDLE_CONNECTIONS
    return pool
