"""Where the engine listens, and an HTTP client that connects there."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint as IEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from k3dreg.model.errors import UsageError

# Seconds.  A socket of this machine answers at once or not at all; over a network ten are plenty.
CONNECT_TIMEOUT = 10.0
# Seconds that an idle connection is kept for the next request.  The engine itself never closes idle ones.
IDLE_TIMEOUT = 60
# Idle connections kept.  It limits nothing that is in use: every request that finds none idle opens its own,
# so long bodies do not hold up short questions.
IDLE_CONNECTIONS = 8

_TCP_PORT = 2375  # the IANA port of Docker's plain API
_USAGE = "use unix:///path/to/docker.sock, tcp://HOST[:PORT] or http://HOST[:PORT]"


@frozen
class EngineAddress:
    """Where an engine listens: `path` of a UNIX socket, or `host` and `port`; the other is empty."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse_engine_url(url: str) -> EngineAddress:
    """The address that `url` spells, in the forms of `DOCKER_HOST`.  Raises `UsageError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"not the address of an engine: {url!r}; {_USAGE}") from error
    extra = parts.query or parts.fragment
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/") and not extra:
        return EngineAddress(path=parts.path)
    bare = parts.username is None and parts.path in ("", "/") and not extra
    if parts.scheme in ("tcp", "http") and host and bare and port != 0:
        return EngineAddress(host=host, port=port or _TCP_PORT)
    raise UsageError(f"not the address of an engine: {url!r}; {_USAGE}")


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
) -> IAgent:
    """An HTTP client whose every request goes to the engine at `address`.

    `reactor` connects (UNIX, TCP and names) and tells the time.  `connect_timeout` in seconds.
    `pool` keeps idle connections; give one to close them in the end.
    """
    endpoint: IEndpoint
    if address.path:
        endpoint = UNIXClientEndpoint(reactor, address.path, timeout=connect_timeout)
    else:
        endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=connect_timeout)
    if pool is None:
        pool = make_pool(reactor)
    return _Uncompressed(Agent.usingEndpointFactory(reactor, _OneEndpoint(endpoint), pool))


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
        bodyProducer: IBodyProducer | None = None,  # noqa: N803  (IAgent's name)
    ) -> Deferred[IResponse]:
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders("accept-encoding", ["identity"])
        requested: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
        return requested


class _QuietFactory(_HTTP11ClientFactory):
    noisy = False


def make_pool(reactor: Any) -> HTTPConnectionPool:
    """The pool of idle connections that `make_agent` uses; `closeCachedConnections` ends them."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    # Twisted would write two lines to the log for each connection, and has no public way to say no.
    pool._factory = _QuietFactory
    pool.cachedConnectionTimeout = IDLE_TIMEOUT
    pool.maxPersistentPerHost = IDLE_CONNECTIONS
    return pool
