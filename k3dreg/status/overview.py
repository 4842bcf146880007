"""What the status page shows, as values."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from k3dreg.reporting.activity import Progress, RequestReport
from k3dreg.store.interfaces import PushedUsage


@frozen
class Running:
    """An `Activity` under way as it was at one time, `seconds` after it began."""

    kind: str
    subject: str
    seconds: float
    progress: Progress
    waiters: int


@frozen
class Saved:
    """What k3dreg served and what it cost in downloads, since the start of the daemon.

    `bytes` is how many bytes of content clients got from the engine or the store.  `pulls` is how many images clients
    pulled without a pull of the engine.  `fetched` is how many bytes the engine, or k3dreg itself, downloaded.
    """

    bytes: int = 0
    pulls: int = 0
    fetched: int = 0


@frozen
class SeenPull:
    """A pull of an image by one client, as it is or was.

    `image` is what the client asked for first, and `node` the name of the node that the client is, "" if it is none.
    `linked`, `sent` and `there` are numbers of the image's layers: those that were linked for this pull, those that
    were sent, and those that the client did not need.  `whole` is False if the layers are not known; then `sent` is the
    number of blobs.  `sent_bytes` is the size of what was sent.  `saved` is the size in bytes of what was linked.

    `status` is that of the answer by which the pull failed, 0 if it did not, and `reason` says why it failed.  A status
    below 400 is that of an answer whose body broke off.
    `not_linked` is why no layers were linked, "" if there is no such reason.  `requests` are those that have ended, the
    oldest first, and `more_requests` the number of those that are left out.  `waiting` are the requests under way.
    """

    number: int
    image: str
    client: str
    at: float
    node: str = ""
    seconds: float = 0.0
    linked: int = 0
    sent: int = 0
    there: int = 0
    whole: bool = True
    sent_bytes: int = 0
    saved: int = 0
    progress: Progress = field(factory=Progress)
    status: int = 0
    reason: str = ""
    not_linked: str = ""
    requests: tuple[RequestReport, ...] = ()
    more_requests: int = 0
    waiting: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        """The node's name; the client's address if it is no node."""
        return self.node or self.client

    @property
    def broke_off(self) -> bool:
        """Whether the pull failed by an answer whose body broke off."""
        return 0 < self.status < 400

    @property
    def way(self) -> str:
        """How the client came to the image's layers, one of `WAYS`."""
        if self.status:
            return "failed"
        if self.linked:
            return "linked and sent" if self.sent else "linked"
        return "sent" if self.sent else "there"


WAYS = ("linked", "linked and sent", "sent", "there", "failed")


@frozen
class NodeCounts:
    """What one node got since the start: numbers of pulls by `WAYS`, and layers that were linked.

    `sent_bytes` and `saved` are sums of those of `SeenPull`; linking in advance counts, too.  `name` is "other" for all
    clients that are no nodes.
    """

    name: str
    pulls: Mapping[str, int] = {}
    linked: int = 0
    saved: int = 0
    sent_bytes: int = 0


@frozen
class Live:
    """What changes all the time.

    `pulling` are the pulls under way and `running` the work that belongs to none of them, both with the oldest first.
    `pulls` have ended, and `others` are requests that belong to no pull, both with the last one first.
    """

    pulling: tuple[SeenPull, ...] = ()
    running: tuple[Running, ...] = ()
    pulls: tuple[SeenPull, ...] = ()
    others: tuple[RequestReport, ...] = ()
    nodes: tuple[NodeCounts, ...] = ()
    saved: Saved = Saved()


@frozen
class Listed:
    """An image or a pushed manifest under one name.  `size` is in bytes; `age` is in seconds, None if unknown."""

    name: str
    digest: str
    size: int
    age: float | None = None


@frozen
class ListedNode:
    """A node of a cluster.

    `state` says whether it is attached, and `has_mirror` whether its containerd has any mirror of all registries.
    `last_pull` is in seconds since the epoch, None if k3dreg has seen no pull of it.
    """

    cluster: str
    name: str
    state: str
    has_mirror: bool
    last_pull: float | None = None


@frozen
class SourceState:
    """A source of image content and whether k3dreg can use it.

    `open_it` is the advice by which the user can enable it, "" if there is nothing to do.
    """

    name: str
    says: str
    open_it: str = ""


@frozen
class Overview:
    """The state of engine and store.

    `engine` is the engine's product and version, and `where` its address.  `trouble` is why it cannot be used, "" if it
    can.  `cache_bytes`, `cache_limit` and `evicted_bytes` are in bytes; evictions are counted since the start.  Lists
    may be cut: `image_count` and `pushed_count` are the numbers of all entries.  `pushed_use` is the room that pushed
    content takes, and what the rules of `--retain` would free.
    """

    version: str
    engine: str
    where: str
    trouble: str = ""
    sources: tuple[SourceState, ...] = ()
    clusters: tuple[ListedNode, ...] = ()
    images: tuple[Listed, ...] = ()
    image_count: int = 0
    pushed: tuple[Listed, ...] = ()
    pushed_count: int = 0
    pushed_use: PushedUsage = field(factory=PushedUsage)
    cache_bytes: int = 0
    cache_limit: int = 0
    cache_blobs: int = 0
    evicted_blobs: int = 0
    evicted_bytes: int = 0
