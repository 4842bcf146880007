"""Garbage collection of pushed content: blobs that no manifest refers to, and content that was deleted."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IBlobStore, IPushed

log = make_logger()

# Seconds for which a blob that no manifest refers to is kept.  A push sends its blobs first and its manifest last, and
# asks which blobs it need not send; both restart this time.  No push takes six hours from a blob to its manifest.
GRACE = 6 * 3600.0
# Seconds between two collections.
EVERY = 1800.0


@frozen
class Collected:
    """What a collection removed: blobs and manifests from repositories, and files with their total bytes."""

    blobs: int = 0
    manifests: int = 0
    files: int = 0
    bytes: int = 0


class Collector:
    """Collects pushed content that is not referred to: once by `collect`, or regularly from `start` to `stop`."""

    def __init__(
        self, pushed: IPushed, store: IBlobStore, is_engines: Callable[[Digest], bool], clock: IReactorTime
    ) -> None:
        """`is_engines` tells whether the engine has the content, too; its file then stays as cached content.

        `clock.seconds()` must be seconds since the epoch.
        """
        self._pushed = pushed
        self._store = store
        self._is_engines = is_engines
        self._clock = clock
        self._running: Deferred[None] | None = None

    async def collect(self, grace: float = GRACE, *, untagged: bool = False) -> Collected:
        """Collect once, and return what was removed.  Raises `StoreError`.

        A push in progress loses nothing as long as it takes less than `grace` seconds.  `untagged`: also remove the
        manifests that no tag leads to.  That is off by default, because clients may pull them by digest.
        """
        manifests = await self._pushed.remove_untagged_manifests() if untagged else 0
        blobs = await self._pushed.remove_idle_blobs(self._clock.seconds() - grace)
        files = size = 0
        for digest in await self._pushed.let_go():
            its_size = self._store.size_of(digest)
            if not self._store.has(digest) or self._is_engines(digest):
                self._pushed.forget(digest)
            elif await self._store.drop(digest):
                self._pushed.forget(digest)
                files += 1
                size += its_size
        return Collected(blobs, manifests, files, size)

    def start(self) -> None:
        """Collect every `EVERY` seconds, until `stop`."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(lambda failure: failure.trap(CancelledError) and None)

    def stop(self) -> None:
        """Stop collecting.  A collection under way is cancelled; the removal that it waits for still happens."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        while True:
            await deferLater(self._clock, EVERY)
            try:
                collected = await self.collect()
            except StoreError as error:
                log.error("garbage collection of pushed content failed: {error}", error=error)
                continue
            if collected != Collected():
                log.info(
                    "collected {blobs} pushed blobs that no manifest refers to, and {files} files, {size:.1f} MB",
                    blobs=collected.blobs,
                    files=collected.files,
                    size=collected.bytes / 1e6,
                )
