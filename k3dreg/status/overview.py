"""What the status page shows, as values."""

from __future__ import annotations

from attrs import frozen

from k3dreg.reporting.activity import Progress, RequestReport


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
class Live:
    """What changes all the time.  `running` begins with the oldest work, `recent` with the last request."""

    running: tuple[Running, ...] = ()
    recent: tuple[RequestReport, ...] = ()
    saved: Saved = Saved()


@frozen
class Listed:
    """An image or a pushed manifest under one name.  `size` is in bytes; `age` is in seconds, None if unknown."""

    name: str
    digest: str
    size: int
    age: float | None = None


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
    may be cut: `image_count` and `pushed_count` are the numbers of all entries.
    """

    version: str
    engine: str
    where: str
    trouble: str = ""
    sources: tuple[SourceState, ...] = ()
    images: tuple[Listed, ...] = ()
    image_count: int = 0
    pushed: tuple[Listed, ...] = ()
    pushed_count: int = 0
    cache_bytes: int = 0
    cache_limit: int = 0
    cache_blobs: int = 0
    evicted_blobs: int = 0
    evicted_bytes: int = 0
