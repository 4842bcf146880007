"""Prepares images before a client pulls them (`--warm`).

If an image's bytes have to be exported, or its layers assembled, the first pull waits for that.  For images whose names
match a pattern this is done as soon as Docker has them.  Nothing is done where k3dreg can read Docker's files as they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from twisted.internet.interfaces import IConsumer, IProducer, IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine, IImageNames
from k3dreg.images.source import IImageSource
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    ContentError,
    EngineError,
    EngineUnavailable,
    ImageIncomplete,
    ImageNotInEngine,
    K3dregError,
    NotFound,
)
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import split_host
from k3dreg.registry.new_names import NewNames
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IBlobStore

log = make_logger()

# Seconds between two checks for requests under way.
_LOOK_EVERY = 1.0


class Prefetch:
    """Prepares images, one at a time, while no request is under way.

    Call `start`, or `change` with patterns, to begin, and `stop` at the end.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        engine: IEngine,
        names: IImageNames,
        sources: Sequence[IImageSource],
        store: IBlobStore,
        is_busy: Callable[[], bool],
        clock: IReactorTime,
    ) -> None:
        """`patterns` are as for `matches`; `sources` are tried in this order.

        While `is_busy` returns True, requests are under way and no preparation starts.
        """
        self._patterns = patterns
        self._engine = engine
        self._new = NewNames(engine, names, self._is_wanted, self._warm, clock)
        self._sources = sources
        self._store = store
        self._is_busy = is_busy
        self._clock = clock
        # Fingerprints by image ID, of images that were prepared or could not be: these are not tried again.
        self._done: dict[Digest, str] = {}

    def start(self) -> None:
        """Follow the engine's events and prepare matching images; do nothing if there are no patterns."""
        if self._patterns:
            self._new.start()

    def stop(self) -> None:
        """Prepare no more images.  An export or a layer under way goes on until its source stops it."""
        self._new.stop()

    def change(self, patterns: Sequence[str]) -> None:
        """Use other patterns from now on, or none.  The image that is being prepared may be started again."""
        if patterns != self._patterns:
            self.stop()
            self._patterns = patterns
            self.start()

    def _is_wanted(self, name: str) -> bool:
        return matches(name, self._patterns)

    async def _warm(self, name: str) -> None:
        try:
            image = await self._engine.inspect(name)
        except (ImageNotInEngine, EngineError):
            return  # the image is gone, or the engine is: all its images are listed when it is back
        if self._done.get(image.id) == image.fingerprint:
            return
        await self._until_idle()
        started = self._clock.seconds()
        # `source.root` may export the image, which stores its layers although `_fetch` then has nothing to fetch.
        lacking = [layer for layer in image.diff_ids if not self._store.has(layer)]
        try:
            fetched = await self._make_ready(image)
        except EngineUnavailable:
            return
        except K3dregError as error:
            log.warn("{name} could not be made ready: {error}", name=name, error=error)
        except Exception:  # noqa: BLE001  (a bug with one image must not end the loop for the others)
            log.failure("{name} could not be made ready", name=name)
        else:
            if fetched or any(map(self._store.has, lacking)):
                log.info("made {name} ready in {seconds:.1f} s", name=name, seconds=self._clock.seconds() - started)
        self._done[image.id] = image.fingerprint

    async def _make_ready(self, image: EngineImage) -> bool:
        """Fetch the image's content from the first source that gives it; return whether any had to be fetched.

        If no source gives the image, raises what the last one raised.
        """
        failed: K3dregError | None = None
        for source in self._sources:
            try:
                root = await source.root(image, Trace())
                return not source.at_hand and await self._fetch(source, image, root)
            except (NotFound, ImageIncomplete, ContentError) as error:
                failed = error
        if failed is not None:
            raise failed
        return False

    async def _fetch(self, source: IImageSource, image: EngineImage, described: Descriptor) -> bool:
        """Fetch a part of the image and everything below it; return whether any had to be fetched."""
        if described.media_type not in media_types.MANIFESTS | media_types.INDEXES:
            return await self._fetch_blob(source, image, described)
        blob = await source.open(image, described.digest, Trace())
        manifest = Manifest.parse(await blob.read(), described.media_type)
        fetched = False
        for child in manifest.children():
            if not media_types.is_distributable(child.media_type):
                continue
            try:
                fetched |= await self._fetch(source, image, child)
            except BlobUnknown:
                if not manifest.is_index:  # of an index, Docker holds some platforms only
                    raise
        return fetched

    async def _fetch_blob(self, source: IImageSource, image: EngineImage, described: Descriptor) -> bool:
        if self._store.has(described.digest):
            return False
        await self._until_idle()
        blob = await source.open(image, described.digest, Trace())
        if blob.size:
            # A blob that is arriving gives its last byte when all of it is in the store.
            await blob.send(_Nowhere(), blob.size - 1, blob.size)
        return True

    async def _until_idle(self) -> None:
        while self._is_busy():
            await deferLater(self._clock, _LOOK_EVERY)


@implementer(IConsumer)
class _Nowhere:
    """A consumer that discards all data, and never pauses its producer."""

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Do nothing."""

    def unregisterProducer(self) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Discard `data`."""


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether an image's name, as Docker writes it, matches one of the patterns.

    Patterns are those of a shell (`*`, `?`, `[ab]`), but `*` matches slashes, too.  A pattern may match the name with
    its tag or without: `my-app` and `my-app:*` match every tag of `my-app`.  It may match Docker's short name, or the
    name in full.
    """
    return any(fnmatchcase(spelling, pattern) for spelling in _spellings(name) for pattern in patterns)


def _spellings(name: str) -> Iterator[str]:
    repository, at, _ = name.partition("@")
    if not at:
        path, colon, tag = name.rpartition(":")
        repository = path if colon and "/" not in tag else name
    rest = name[len(repository) :]
    short = repository.removeprefix("docker.io/").removeprefix("library/")
    has_host = split_host(short)[0] is not None
    for each in {short, short if has_host else f"docker.io/{short if '/' in short else f'library/{short}'}"}:
        yield each + rest
        yield each
