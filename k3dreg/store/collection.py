"""Garbage collection of pushed content: what rules do not keep, unreferenced blobs, and content that was deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Protocol

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.config.retention import RetainRule
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import ExpiredTag, IPushed, NodeImages, Retired

log = make_logger()

# Seconds for which a blob that no manifest refers to is kept.  A push sends its blobs first and its manifest last, and
# asks which blobs it need not send; both restart this time.  No push takes six hours from a blob to its manifest.
GRACE = 6 * 3600.0
# Seconds between two collections.
EVERY = 3600.0
# Tags of a repository that a log line names.
_NAMED = 10


class IFiles(Protocol):
    """The files of blobs: what a collection needs of `IBlobStore`."""

    def has(self, digest: Digest) -> bool:
        """Return whether the blob's file exists."""

    def size_of(self, digest: Digest) -> int:
        """Return the blob's size in bytes; 0 for an unknown digest."""

    async def drop(self, digest: Digest) -> bool:
        """Remove a blob unless it is held or pinned; return whether it was removed.  Raises `StoreError`."""


@frozen
class Collected:
    """What a collection removed: tags, blobs and manifests from repositories, and files with their total bytes."""

    tags: tuple[ExpiredTag, ...] = ()
    blobs: int = 0
    manifests: int = 0
    files: int = 0
    bytes: int = 0


AskNodes = Callable[[], Awaitable[NodeImages | None]]


async def unknown() -> None:
    """Tell nothing of what nodes hold."""


class Collector:
    """Collects pushed content that is not to be kept: once by `collect`, or regularly from `start` to `stop`.

    These are the tags that the rules of `retain` do not keep, with what only they lead to, and unreferenced blobs.
    """

    def __init__(
        self,
        pushed: IPushed,
        store: IFiles,
        is_engines: Callable[[Digest], bool],
        clock: IReactorTime,
        images_on_nodes: AskNodes = unknown,
    ) -> None:
        """`is_engines` tells whether the engine has the content, too; its file then stays as cached content.

        `clock.seconds()` must be seconds since the epoch.  `images_on_nodes` is asked before rules are applied.  It
        returns None if nothing is known of nodes; what was recorded counts then.
        """
        self._pushed = pushed
        self._store = store
        self._is_engines = is_engines
        self._clock = clock
        self._images_on_nodes = images_on_nodes
        self._rules: Sequence[RetainRule] = ()
        self._running: Deferred[None] | None = None

    def retain(self, rules: Sequence[RetainRule]) -> None:
        """Apply these rules to tags from the next collection on.  There are none at first."""
        self._rules = rules

    async def collect(self, grace: float = GRACE, *, untagged: bool = False) -> Collected:
        """Collect once, and return what was removed.  Raises `StoreError`.

        A push in progress loses nothing as long as it takes less than `grace` seconds.  `untagged`: also remove the
        manifests that no tag leads to.  That is off by default, because clients may pull them by digest.
        """
        unused_since = self._clock.seconds() - grace
        retired = await self._retire(unused_since) if self._rules else Retired()
        manifests = await self._pushed.remove_untagged_manifests() if untagged else 0
        blobs = await self._pushed.remove_idle_blobs(unused_since)
        files = size = 0
        for digest in await self._pushed.let_go():
            its_size = self._store.size_of(digest)
            if not self._store.has(digest) or self._is_engines(digest):
                self._pushed.forget(digest)
            elif await self._store.drop(digest):
                self._pushed.forget(digest)
                files += 1
                size += its_size
        return Collected(retired.tags, blobs, retired.manifests + manifests, files, size)

    async def _retire(self, unused_since: float) -> Retired:
        if (nodes := await self._images_on_nodes()) is not None:
            await self._pushed.record_node_images(nodes)
        return await self._pushed.retire(self._rules, unused_since)

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
            for (repository, rule), tags in groupby(collected.tags, key=lambda tag: (tag.repository, tag.rule)):
                names = [tag.name for tag in tags]
                log.info(
                    "--retain {rule} has removed {count} of the tags of {repository}: {names}",
                    rule=rule.text,
                    count=len(names),
                    repository=repository,
                    names=", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])]),
                )
            if collected != Collected():
                log.info(
                    "collected {manifests} pushed manifests, {blobs} blobs to which no manifest refers, and {files} "
                    "files, {size:.1f} MB",
                    manifests=collected.manifests,
                    blobs=collected.blobs,
                    files=collected.files,
                    size=collected.bytes / 1e6,
                )
