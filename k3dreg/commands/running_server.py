"""Requests to a running k3dreg, with the credentials that `docker login` left."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci import media_types
from k3dreg.oci.errors import K3dregError
from k3dreg.oci.reference import Reference

# The media types of manifests that containerd accepts.
_ACCEPT = ", ".join(sorted(media_types.INDEXES | media_types.MANIFESTS))

FindCredentials = Callable[[str], Awaitable[Credentials | None]]


class ServerRefused(K3dregError):
    """The running k3dreg does not do what it was asked for; the text is the message of its answer."""


class RunningServer:
    """The k3dreg at `url` (`http://host:port`).  Call `log_in` first."""

    def __init__(self, agent: IAgent, url: str, find: FindCredentials) -> None:
        """`find` returns credentials for host:port, if that k3dreg requires some; it may raise `K3dregError`."""
        self._agent = agent
        self._url = url.rstrip("/")
        self._find = find
        self._headers = Headers({"Accept": [_ACCEPT]})

    async def log_in(self) -> None:
        """Find credentials if the k3dreg requires some.  Raises `ServerRefused` if there are none, or wrong ones."""
        response = await self.request("/v2/")
        await read(response)
        if response.code != 401:
            return
        host = urlsplit(self._url).netloc
        found = await self._find(host)
        header = "" if found is None else found.to_header()
        if found is None or not header:
            raise ServerRefused(f"the k3dreg at {host} asks for a password", advice=f"docker login {host}")
        self._headers.setRawHeaders("Authorization", [header])
        response = await self.request("/v2/")
        await read(response)
        if response.code == 401:
            raise ServerRefused(
                f"the k3dreg at {host} does not accept the user {found.username} and password of Docker's config.json",
                advice=f"docker login {host}",
            )

    async def check_state(self, name: str) -> None:
        """Raise `ServerRefused` unless the k3dreg uses the state directory that `store.identity.public_name` names."""
        response = await self.request("/healthz")
        parts: list[bytes] = []
        await read(response, parts=parts)
        try:
            found = json.loads(b"".join(parts))["state"]
        except (ValueError, LookupError, TypeError):
            found = ""
        if found != name:
            raise ServerRefused(
                f"a k3dreg uses this state directory, and it is not the one at {self._url}",
                advice="give its address: --server http://HOST:PORT",
            )

    async def request(self, path: str, method: str = "GET") -> IResponse:
        """Return the response to a request.  Raises `ServerRefused` if there is no k3dreg."""
        try:
            response: IResponse = await self._agent.request(
                method.encode("ascii"), f"{self._url}{path}".encode("ascii"), self._headers, None
            )
        except (ConnectError, OSError, ResponseFailed) as error:
            raise ServerRefused(f"no k3dreg at {self._url}: {error}", advice="--server http://HOST:PORT") from error
        return response


def path_of(reference: Reference, kind: str = "manifests", **parameters: str) -> str:
    """Return the path of a manifest or blob, and a query with the `ns` of its repository and other parameters."""
    registry = reference.repository.registry
    parameters = {**({} if registry is None else {"ns": registry}), **parameters}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return f"/v2/{reference.repository.path}/{kind}/{reference.target}{'?' if query else ''}{query}"


async def refusal_of(response: IResponse) -> ServerRefused:
    """Return the error that a response tells, after reading its body."""
    parts: list[bytes] = []
    await read(response, parts=parts)
    message, advice = _explanation(b"".join(parts))
    return ServerRefused(message or f"k3dreg answered {response.code}", advice=advice)


def _explanation(body: bytes) -> tuple[str, str]:
    """Return the message and the advice of an error answer of k3dreg, each "" if it is missing."""
    try:
        error = json.loads(body)["errors"][0]
        return str(error["message"]), str(error.get("detail", {}).get("advice", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", ""


async def read(
    response: IResponse, progress: Callable[[int], None] = lambda size: None, parts: list[bytes] | None = None
) -> int:
    """Read the body of a response; return the number of its bytes, which are appended to `parts` if that is given.

    `progress` is called with the number of bytes in each piece.  Raises `ServerRefused` if the answer breaks off.
    """
    reader = _Reader(progress, parts)
    response.deliverBody(reader)
    return await reader.done


class _Reader(Protocol):
    def __init__(self, progress: Callable[[int], None], parts: list[bytes] | None) -> None:
        self.done: Deferred[int] = Deferred()
        self._progress = progress
        self._parts = parts
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        self._progress(len(data))
        if self._parts is not None:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(self._size)
        else:
            self.done.errback(ServerRefused(f"the answer broke off: {reason.getErrorMessage()}"))
