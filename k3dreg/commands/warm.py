"""`k3dreg warm IMAGE…`: makes a running k3dreg prepare images, by requesting them as a node does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.iweb import IResponse

from k3dreg.commands.running_server import RunningServer, ServerRefused, path_of, read, refusal_of
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.manifest import LARGEST_MANIFEST, Manifest
from k3dreg.oci.reference import Reference

# Seconds until a request is repeated after a `Retry-After` that is no number.
_AGAIN = 10.0


class Warmer:
    """Requests images from a running k3dreg, to which `server` has logged in.

    `progress` is called with the image's name, the bytes read and the bytes expected.
    """

    def __init__(self, server: RunningServer, clock: IReactorTime, progress: Callable[[str, int, int], None]) -> None:
        self._server = server
        self._clock = clock
        self._progress = progress

    async def warm(self, reference: Reference) -> int:
        """Read every layer and config of the image once, of all platforms that Docker has; return the number of bytes.

        Raises `ServerRefused`.
        """
        name, done, total = str(reference), 0, 0
        self._progress(name, 0, 0)
        layers: dict[Digest, int] = {}
        manifest = await self._manifest(reference)
        found = [manifest]
        if manifest.is_index:
            found = []
            refused: ServerRefused | None = None
            for child in manifest.manifests:
                try:
                    found.append(await self._manifest(Reference(reference.repository, child.digest)))
                except ServerRefused as error:  # Docker has not pulled this platform
                    refused = error
            if not found:
                raise refused or ServerRefused(f"{name} is an index without manifests")
        for each in found:
            layers |= {
                part.digest: part.size for part in each.children() if media_types.is_distributable(part.media_type)
            }
        total = sum(layers.values())
        for digest in layers:

            def count(size: int) -> None:
                nonlocal done
                done += size
                self._progress(name, done, total)

            response = await self._get(path_of(Reference(reference.repository, digest), "blobs"))
            expected, got = response.length, await read(response, count)
            if got != expected:
                raise ServerRefused(f"{digest} broke off after {got} bytes")
        return done

    async def _manifest(self, reference: Reference) -> Manifest:
        parts: list[bytes] = []
        response = await self._get(path_of(reference))
        await read(response, parts=parts)
        media_type = (response.headers.getRawHeaders("Content-Type") or [""])[0]
        return Manifest.parse(b"".join(parts)[: LARGEST_MANIFEST + 1], media_type)

    async def _get(self, path: str) -> IResponse:
        while True:
            response = await self._server.request(path)
            if response.code == 200:
                return response
            # 503 with `Retry-After`: the work in k3dreg goes on.
            after = (response.headers.getRawHeaders("Retry-After") or [""])[0]
            refusal = await refusal_of(response)
            if response.code != 503 or not after:
                raise refusal
            await deferLater(self._clock, float(after) if after.isdecimal() else _AGAIN)


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
