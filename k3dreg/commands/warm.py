"""`k3dreg warm IMAGE…`: makes a running k3dreg prepare images, by requesting them as a node does."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError
from k3dreg.oci.manifest import LARGEST_MANIFEST, Manifest
from k3dreg.oci.reference import Reference, Repository

# The media types of manifests that containerd accepts.
_ACCEPT = ", ".join(sorted(media_types.INDEXES | media_types.MANIFESTS))
# Seconds until a request is repeated after a `Retry-After` that is no number.
_AGAIN = 10.0

FindCredentials = Callable[[str], Awaitable[Credentials | None]]


class CannotWarm(K3dregError):
    """The running k3dreg does not give the image; the text is the message of its answer."""


class Warmer:
    """Requests images from the k3dreg at `server` (`http://host:port`).  Call `log_in` first.

    `progress` is called with the image's name, the bytes read and the bytes expected.  `find` returns credentials for
    host:port, if that k3dreg requires some; it may raise `K3dregError`.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        server: str,
        progress: Callable[[str, int, int], None],
        find: FindCredentials,
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._server = server.rstrip("/")
        self._progress = progress
        self._find = find
        self._headers = Headers({"Accept": [_ACCEPT]})

    async def log_in(self) -> None:
        """Find credentials if the k3dreg requires some.  Raises `CannotWarm` if there are none, or wrong ones."""
        response = await self._request("/v2/")
        await _read(response, lambda size: None)
        if response.code != 401:
            return
        host = urlsplit(self._server).netloc
        found = await self._find(host)
        header = "" if found is None else found.to_header()
        if found is None or not header:
            raise CannotWarm(f"the k3dreg at {host} asks for a password", advice=f"docker login {host}")
        self._headers.setRawHeaders("Authorization", [header])
        response = await self._request("/v2/")
        await _read(response, lambda size: None)
        if response.code == 401:
            raise CannotWarm(
                f"the k3dreg at {host} does not accept the user {found.username} and password of Docker's config.json",
                advice=f"docker login {host}",
            )

    async def warm(self, reference: Reference) -> int:
        """Read every layer and config of the image once, of all platforms that Docker has; return the number of bytes.

        Raises `CannotWarm`.
        """
        name, done, total = str(reference), 0, 0
        self._progress(name, 0, 0)
        layers: dict[Digest, int] = {}
        manifest = await self._manifest(reference)
        found = [manifest]
        if manifest.is_index:
            found = []
            refused: CannotWarm | None = None
            for child in manifest.manifests:
                try:
                    found.append(await self._manifest(Reference(reference.repository, child.digest)))
                except CannotWarm as error:  # Docker has not pulled this platform
                    refused = error
            if not found:
                raise refused or CannotWarm(f"{name} is an index without manifests")
        for each in found:
            layers |= {
                part.digest: part.size for part in each.children() if media_types.is_distributable(part.media_type)
            }
        total = sum(layers.values())
        for digest in layers:

            def read(size: int) -> None:
                nonlocal done
                done += size
                self._progress(name, done, total)

            path = f"/v2/{reference.repository.path}/blobs/{digest}"
            response = await self._get(path, reference.repository)
            expected, got = response.length, await _read(response, read)
            if got != expected:
                raise CannotWarm(f"{digest} broke off after {got} bytes")
        return done

    async def _manifest(self, reference: Reference) -> Manifest:
        parts: list[bytes] = []
        path = f"/v2/{reference.repository.path}/manifests/{reference.target}"
        response = await self._get(path, reference.repository)
        await _read(response, lambda size: None, parts)
        media_type = (response.headers.getRawHeaders("Content-Type") or [""])[0]
        return Manifest.parse(b"".join(parts)[: LARGEST_MANIFEST + 1], media_type)

    async def _get(self, path: str, repository: Repository) -> IResponse:
        ns = "" if repository.registry is None else f"?ns={quote(repository.registry, safe='')}"
        while True:
            response = await self._request(path + ns)
            if response.code == 200:
                return response
            parts: list[bytes] = []
            await _read(response, lambda size: None, parts)
            # 503 with `Retry-After`: the work in k3dreg goes on.
            after = (response.headers.getRawHeaders("Retry-After") or [""])[0]
            if response.code != 503 or not after:
                message, advice = _explanation(b"".join(parts))
                raise CannotWarm(message or f"k3dreg answered {response.code}", advice=advice)
            await deferLater(self._clock, float(after) if after.isdecimal() else _AGAIN)

    async def _request(self, path: str) -> IResponse:
        try:
            response: IResponse = await self._agent.request(
                b"GET", f"{self._server}{path}".encode("ascii"), self._headers, None
            )
        except (ConnectError, OSError) as error:
            raise CannotWarm(f"no k3dreg at {self._server}: {error}", advice="--server http://HOST:PORT") from error
        return response


def _explanation(body: bytes) -> tuple[str, str]:
    """Return the message and the advice of an error answer of k3dreg, each "" if it is missing."""
    try:
        error = json.loads(body)["errors"][0]
        return str(error["message"]), str(error.get("detail", {}).get("advice", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", ""


async def _read(response: IResponse, progress: Callable[[int], None], parts: list[bytes] | None = None) -> int:
    """Read the body of a response; return the number of its bytes, which are appended to `parts` if that is given."""
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
            self.done.errback(CannotWarm(f"the answer broke off: {reason.getErrorMessage()}"))


def bar(name: str, done: int, total: int, width: int = 30) -> str:
    """Return one line of progress, without a line end.  `width` is that of the bar in columns."""
    if not total:
        return f"{name}: waiting for Docker"
    full = min(width, width * done // total)
    return f"{name}: [{'#' * full}{'.' * (width - full)}] {done / 1e6:.1f} of {total / 1e6:.1f} MB"


def make_printer(out: Any, *, is_terminal: bool) -> Callable[[str, int, int], None]:
    """Return a `progress` for `Warmer`, which draws bars on a terminal, and writes nothing elsewhere."""
    shown = ""

    def draw(name: str, done: int, total: int) -> None:
        nonlocal shown
        line = bar(name, done, total)
        if is_terminal and line != shown:
            out.write(f"\r{line}\x1b[K")
            out.flush()
        shown = line

    return draw
