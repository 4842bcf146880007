"""HTTP requests to registries: verified TLS, redirects that leak nothing, foreign exceptions turned into our own."""

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
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from k3dreg.oci.errors import EngineError, RedirectRefused, UpstreamFailed
from k3dreg.oci.reference import DOCKER_HUB
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.quiet_pool import quiet_pool
from k3dreg.streaming.response_body import ResponseBody, read_whole
from k3dreg.upstream.addresses import hostname_of, is_local_host

# Seconds until the connection is there, and until the head of an answer is: a node waits 30 for both and for ours.
CONNECT_TIMEOUT = 10.0
HEAD_TIMEOUT = 15.0
# Seconds without a byte after which a body is given up, to be resumed.
SILENCE = 30.0
# A registry sends a client to its storage, and that perhaps to a mirror of it.  A request of a client may take three of
# ours (refused, a token, the answer), and each redirect is one more, at an address that the registry chooses.
_REDIRECTS = 2
# Bytes of an error answer, of which one sentence is kept.
_LARGEST_COMPLAINT = 64 * 1024
# Docker Hub's registry is not where its name says (docker/cli, and every client since).
_HUB_HOST = "registry-1.docker.io"

# `DNSLookupError` is no `ConnectError`.
_UNCONNECTED = (net.ConnectError, net.ConnectingCancelledError, net.DNSLookupError)
_FAILED = (ResponseFailed, ResponseNeverReceived, RequestTransmissionFailed, RequestGenerationFailed)


@frozen
class RegistryResponse:
    """The head of an answer; the body is for `body` to read, or to close."""

    status: int
    headers: Headers
    response: IResponse
    host: str  # whose answer it is, after redirects

    @property
    def length(self) -> int | None:
        """Bytes in the body, as far as it says so.  (`Content-Length` is not among the headers that Twisted gives.)"""
        return None if self.response.length is UNKNOWN_LENGTH else int(self.response.length)

    def header(self, name: str) -> str:
        """The first value, "" for none."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else ""


def make_origin_agent(reactor: Any, *, trust_root: Any = None, pool: HTTPConnectionPool | None = None) -> IAgent:
    """A client of registries.  Certificates are checked against the platform's roots, or `trust_root`.

    `pool` keeps idle connections; give `quiet_pool`'s to close them in the end.
    """
    policy = BrowserLikePolicyForHTTPS() if trust_root is None else BrowserLikePolicyForHTTPS(trust_root)
    if pool is None:
        pool = quiet_pool(reactor)
    agent: IAgent = Agent(reactor, policy, connectTimeout=CONNECT_TIMEOUT, pool=pool)
    return agent


def base_url(registry: str) -> str:
    """Where a registry's API is.

    HTTPS, but for this machine's own registries: Docker, too, takes 127.0.0.0/8 as insecure by default, and what is
    sent to them cannot be seen by others.
    """
    host = _HUB_HOST if registry == DOCKER_HUB else registry
    return f"{'http' if is_loopback(host) else 'https'}://{host}"


def check_is_elsewhere(host: str, asked: str) -> None:
    """Raise `RedirectRefused` if the registry `asked` sends us to a local `host`, unless that is its own.

    What listens on this machine and its link is not for a registry elsewhere to reach through us.
    """
    if is_local_host(host) and hostname_of(host) != hostname_of(asked):
        raise RedirectRefused(f"{asked} redirects to an address of this machine or its link")


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine by its very name."""
    name = hostname_of(host)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class Requests:
    """GET and POST with everything that is the same for manifests, blobs and tokens."""

    def __init__(self, agent: IAgent, clock: IReactorTime) -> None:
        """`agent` by itself, without treq: that one offers to take gzip, and a blob is to come as it is."""
        self._agent = agent
        self._clock = clock

    async def get(self, url: str, headers: Mapping[str, str], authorization: str = "") -> RegistryResponse:
        """The answer to a GET, redirects followed, whatever its status.

        `authorization` is shown to the URL's own host only, not to where that sends us.  Raises `UpstreamFailed`.
        Cancelling closes the connection.
        """
        first = urlsplit(url)
        for _ in range(_REDIRECTS + 1):
            parts = urlsplit(url)
            shown = authorization if _same_server(parts, first) else ""
            answer = await self._send("GET", url, dict(headers) | ({"Authorization": shown} if shown else {}))
            location = answer.header("location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            self.body(answer, "a redirect").close()
            url = urljoin(url, location)
            _check_redirect(parts, urlsplit(url), first.netloc)
        raise RedirectRefused(f"{first.netloc} redirects for ever")

    async def post(self, url: str, form: Mapping[str, str]) -> RegistryResponse:
        """The answer to a form that is posted.  Redirects are not followed: a form may hold a secret."""
        return await self._send("POST", url, {"Content-Type": "application/x-www-form-urlencoded"}, form)

    def body(self, answer: RegistryResponse, what: str) -> IByteStream:
        """The body of an answer.  Errors in it are `EngineUnavailable`s: see `broken`."""
        return ResponseBody(answer.response, self._clock, silence=SILENCE, what=what)

    async def read(self, answer: RegistryResponse, limit: int) -> bytes:
        """All of a small body.  Raises `UpstreamFailed`, also for one of more than `limit` bytes."""
        if answer.length is not None and answer.length > limit:
            self.body(answer, "an answer").close()
            raise UpstreamFailed(f"{answer.host} answers with {answer.length} bytes where at most {limit} are expected")
        try:
            return await read_whole(self.body(answer, "an answer"), limit)
        except EngineError as error:
            raise broken(answer.host) from error

    async def complaint(self, answer: RegistryResponse) -> str:
        """What an error answer says, in one line (distribution-spec 1.1, "Error Codes"); its status if nothing."""
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
            # An address to some, a name to others; no certificate can be checked against it.
            raise UpstreamFailed(f"{host[:100]} is not the name of a host")

        def silent(_result: object, _seconds: float) -> NoReturn:
            raise UpstreamFailed(f"{host} did not answer for {HEAD_TIMEOUT:.0f} s")

        try:
            sent: Deferred[IResponse] = self._agent.request(
                method.encode("ascii"),
                url.encode("ascii"),
                Headers({"User-Agent": ["k3dreg"], **{name: [value] for name, value in headers.items()}}),
                None if form is None else _Form(form),
            )
            sent.addTimeout(HEAD_TIMEOUT, self._clock, silent)
            response: IResponse = await sent
        except UpstreamFailed:
            raise
        except (*_UNCONNECTED, net.ConnectionClosed, SSL.Error, *_FAILED) as error:
            if _was_cancelled(error):
                raise CancelledError from error
            raise UpstreamFailed(f"{host} cannot be reached: {_reason(error)}") from error
        except ValueError as error:  # a URL that is none; it may hold a signature, so it is not repeated
            raise UpstreamFailed("a registry redirects to something that is no address of a server") from error
        return RegistryResponse(response.code, response.headers, response, host)


def broken(host: str) -> UpstreamFailed:
    """For a body that ended early."""
    return UpstreamFailed(f"the connection to {host} was lost in the middle of an answer")


@implementer(IBodyProducer)
class _Form:
    """A form, as the body of a request."""

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
    """Raise `RedirectRefused` for a redirect to a place without TLS, or to one that only this machine reaches."""
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
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def _causes(error: BaseException) -> list[BaseException]:
    reasons: list[Failure] = getattr(error, "reasons", [])
    return [cause for reason in reasons if reason.value for cause in _causes(reason.value)] or [error]


def _was_cancelled(error: BaseException) -> bool:
    return any(isinstance(cause, CancelledError | net.ConnectingCancelledError) for cause in _causes(error))


def _reason(error: BaseException) -> str:
    for cause in _causes(error):
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
