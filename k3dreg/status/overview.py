"""What the status page shows, as values."""

from __future__ import annotations

from attrs import frozen

from k3dreg.reporting.activity import Progress, RequestReport


@frozen
class Running:
    """Something under way: an `Activity` as it was at the time of asking.  `seconds`: since it began."""

    kind: str
    subject: str
    seconds: float
    progress: Progress
    waiters: int


@frozen
class Saved:
    """What did not have to come over the internet.  Counted since the start of the daemon.

    `bytes` of bodies that came from the engine or this store; `pulls` are images that clients pulled without
    the engine having to pull them; `fetched` are bytes that the engine, or k3dreg itself, did fetch.
    """

    bytes: int = 0
    pulls: int = 0
    fetched: int = 0


@frozen
class Live:
    """What changes all the time.  The longest under way, and the last to end, come first."""

    running: tuple[Running, ...] = ()
    recent: tuple[RequestReport, ...] = ()
    saved: Saved = Saved()


@frozen
class Listed:
    """An image or a pushed manifest under one name.  Size in bytes; `age` in seconds, None if it is not known."""

    name: str
    digest: str
    size: int
    age: float | None = None


@frozen
class SourceState:
    """A way to the bytes of images.  `open_it` is the one line that opens it, "" when it is open."""

    name: str
    says: str
    open_it: str = ""


@frozen
class Overview:
    """What is here.

    `engine` is what it says it is, `where` its address; `trouble` why it cannot be used, "" when it can.
    `cache_bytes`, `cache_limit` and `evicted_bytes` in bytes; what was evicted counts since the start.  Lists that are
    cut tell how many there are in `…_count`.
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
