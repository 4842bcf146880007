"""HTTP requests to registries: verified TLS, checked redirects, and foreign exceptions turned into k3dreg's own."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from attrs import frozen
from OpenSSL import SSL
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from k3dreg.formats.text import one_line
from k3dreg.oci.errors import EngineError, RedirectRefused, UpstreamFailed
from k3dreg.oci.reference import DOCKER_HUB
from k3dreg.oci.user_agent import USER_AGENT
from k3dreg.streaming.connection_errors import CONNECTION_ERRORS, causes, was_cancelled
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.quiet_pool import quiet_pool
from k3dreg.streaming.response_body import ResponseBody, read_whole
from k3dreg.upstream.addresses import hostname_of, is_local_host

# Seconds until the connection is made, and until the head of the answer has arrived.  A node waits 30 s for k3dreg's
# answer, which has to come after both.
CONNECT_TIMEOUT = 10.0
HEAD_TIMEOUT = 15.0
# Seconds without a byte after which a body counts as broken; a download then resumes with another request.
SILENCE = 30.0
# A registry redirects to its storage, which may redirect to a mirror.  Each redirect is one more request, at an address
# that the registry chooses, and k3dreg may make three requests (refused, a token, the answer) for one of a client.
_REDIRECTS = 2
# Bytes of an error answer, of which one sentence is kept.
_LARGEST_COMPLAINT = 64 * 1024
# The host of Docker Hub's registry, which is not `docker.io` (moby/moby, registry/config.go).
_HUB_HOST = "registry-1.docker.io"

_FAILED: tuple[type[Exception], ...] = (*CONNECTION_ERRORS, SSL.Error)


@frozen
class RegistryResponse:
    """The head of an answer.  The caller must pass it to `body` or `read` of `Requests`, which end its connection."""

    status: int
    headers: Headers
    response: IResponse
    host: str  # the host that has answered, after redirects

    @property
    def length(self) -> int | None:
        """Bytes in the body; None if the registry does not tell.

        Twisted does not give `Content-Length` among the headers.
        """
        return None if self.response.length is UNKNOWN_LENGTH else int(self.response.length)

    def header(self, name: str) -> str:
        """Return the first value of the header `name`, "" for none."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else ""


def make_origin_agent(reactor: Any, *, trust_root: Any = None, pool: HTTPConnectionPool | None = None) -> IAgent:
    """Return an HTTP client for registries, which checks certificates against the platform's roots, or `trust_root`.

    `pool` keeps idle connections.  A caller that wants to close them in the end passes its own, from `quiet_pool`.
    """
    policy = BrowserLikePolicyForHTTPS() if trust_root is None else BrowserLikePolicyForHTTPS(trust_root)
    if pool is None:
        pool = quiet_pool(reactor)
    agent: IAgent = Agent(reactor, policy, connectTimeout=CONNECT_TIMEOUT, pool=pool)
    return agent


def base_url(registry: str) -> str:
    """Return the URL of a registry's API.

    The scheme is HTTPS, except for registries of this machine.  Docker, too, takes 127.0.0.0/8 as insecure by default,
    and other machines cannot see what is sent there.
    """
    host = _HUB_HOST if registry == DOCKER_HUB else registry
    return f"{'http' if is_loopback(host) else 'https'}://{host}"


def check_is_elsewhere(host: str, asked: str) -> None:
    """Raise `RedirectRefused` if the registry `asked` redirects to a local `host`, unless both are the same host.

    Otherwise a remote registry could make k3dreg send requests to services of this machine and its link.
    """
    if is_local_host(host) and hostname_of(host) != hostname_of(asked):
        raise RedirectRefused(f"{asked} redirects to an address of this machine or its link")


def is_loopback(host: str) -> bool:
    """Return whether a host, with or without a port, is `localhost` or a loopback address."""
    name = hostname_of(host)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class Requests:
    """GET, HEAD and POST requests for manifests, blobs and tokens."""

    def __init__(self, agent: IAgent, clock: IReactorTime) -> None:
        """`agent` is used without treq, which would accept gzip: a blob must arrive with the bytes of its digest."""
        self._agent = agent
        self._clock = clock

    async def get(
        self, url: str, headers: Mapping[str, str], authorization: str = "", *, method: str = "GET"
    ) -> RegistryResponse:
        """Send a GET, or another `method` without a body, follow redirects, and return the answer, whatever its status.

        `authorization` is sent to the URL's own server only, and not to a server that it redirects to.  Cancelling
        closes the connection.  Raises `UpstreamFailed`, and `RedirectRefused` for a redirect that is not followed.
        """
        first = urlsplit(url)
        for _ in range(_REDIRECTS + 1):
            parts = urlsplit(url)
            shown = authorization if _same_server(parts, first) else ""
            answer = await self._send(method, url, dict(headers) | ({"Authorization": shown} if shown else {}))
            location = answer.header("location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            self.body(answer, "a redirect").close()
            url = urljoin(url, location)
            _check_redirect(parts, urlsplit(url), first.netloc)
        raise RedirectRefused(f"{first.netloc} redirects for ever")

    async def post(self, url: str, form: Mapping[str, str]) -> RegistryResponse:
        """Post a form and return the answer.  Redirects are not followed, because a form may contain a secret."""
        return await self._send("POST", url, {"Content-Type": "application/x-www-form-urlencoded"}, form)

    def body(self, answer: RegistryResponse, what: str) -> IByteStream:
        """Return the body of an answer, which the caller must read to its end or close.

        Its `read` raises `EngineUnavailable` or `EngineSilent`, as for an engine.  Callers convert them: see `broken`.
        """
        return ResponseBody(answer.response, self._clock, silence=SILENCE, what=what)

    async def read(self, answer: RegistryResponse, limit: int) -> bytes:
        """Return the whole of a small body.  Raises `UpstreamFailed`, also if it has more than `limit` bytes."""
        if answer.length is not None and answer.length > limit:
            self.body(answer, "an answer").close()
            raise UpstreamFailed(f"{answer.host} answers with {answer.length} bytes where at most {limit} are expected")
        try:
            return await read_whole(self.body(answer, "an answer"), limit)
        except EngineError as error:
            raise broken(answer.host) from error

    async def complaint(self, answer: RegistryResponse) -> str:
        """Return the status and message of an error answer in one line (distribution-spec 1.1, "Error Codes")."""
        said = ""
        with contextlib.suppress(UpstreamFailed):
            said = _words(await self.read(answer, _LARGEST_COMPLAINT))
        return f"{answer.host} answered {answer.status}" + (f": {said}" if said else "")

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> RegistryResponse:
        parts = urlsplit(url)
        host = parts.netloc
        if parts.scheme == "https" and (parts.hostname or "").isdecimal():
            # A number as a host is an address to some libraries and a name to others, so no certificate can match it.
            raise UpstreamFailed(f"{host[:100]} is not the name of a host")

        def silent(_result: object, _seconds: float) -> NoReturn:
            raise UpstreamFailed(f"{host} did not answer for {HEAD_TIMEOUT:.0f} s")

        try:
            sent: Deferred[IResponse] = self._agent.request(
                method.encode("ascii"),
                url.encode("ascii"),
                Headers({"User-Agent": [USER_AGENT], **{name: [value] for name, value in headers.items()}}),
                None if form is None else _Form(form),
            )
            sent.addTimeout(HEAD_TIMEOUT, self._clock, silent)
            response: IResponse = await sent
        except UpstreamFailed:
            raise
        except _FAILED as error:
            if was_cancelled(error):
                raise CancelledError from error
            raise UpstreamFailed(f"{host} cannot be reached: {_reason(error)}") from error
        except ValueError as error:  # an invalid URL, which the error does not quote because it may contain a signature
            raise UpstreamFailed("a registry redirects to something that is no address of a server") from error
        return RegistryResponse(response.code, response.headers, response, host)


def broken(host: str) -> UpstreamFailed:
    """Return the error for a body from `host` that ended early."""
    return UpstreamFailed(f"the connection to {host} was lost in the middle of an answer")


@implementer(IBodyProducer)
class _Form:
    """The body of a request that posts a form."""

    def __init__(self, form: Mapping[str, str]) -> None:
        self._data = urlencode(form).encode("ascii")
        self.length = len(self._data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def stopProducing(self) -> None:
        pass

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass


def _same_server(one: SplitResult, other: SplitResult) -> bool:
    return (one.scheme, one.netloc.lower()) == (other.scheme, other.netloc.lower())


def _check_redirect(before: SplitResult, after: SplitResult, asked: str) -> None:
    """Raise `RedirectRefused` for a redirect to a server without TLS, or to a local host.

    A registry of this machine that is asked by plain HTTP may redirect to plain HTTP on this machine.
    """
    check_is_elsewhere(after.netloc.rpartition("@")[2], asked)
    if after.scheme == "https" or (after.scheme == "http" and before.scheme == "http" and is_loopback(after.netloc)):
        return
    raise RedirectRefused(f"{before.netloc} redirects to an address without TLS")


def _words(body: bytes) -> str:
    try:
        value = json.loads(body)
        first = value["errors"][0]
        text = " ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""
    return one_line(text)[:300]


def _reason(error: BaseException) -> str:
    for cause in causes(error):
        if isinstance(cause, SSL.Error) or type(cause).__module__.startswith("service_identity"):
            return "its certificate is not trusted, or it does not speak TLS"
        if isinstance(cause, net.DNSLookupError):
            return "its name does not resolve"
        if isinstance(cause, net.ConnectionRefusedError):
            return "it refuses connections"
        if isinstance(cause, net.TimeoutError):
            return "the connection timed out"
        if isinstance(cause, net.ConnectError):
            return "the connection failed"
    return "the connection was lost before it answered"
