"""The users of this registry, out of a password file (`--htpasswd`).

A bcrypt hash takes from 2 ms (htpasswd's default) to seconds to check, on purpose.  So it is checked in a worker
thread, a few at a time, and the outcome is kept for a while in memory, under a keyed hash of what was shown.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import bcrypt
from attrs import define, field
from twisted.internet.defer import Deferred, DeferredSemaphore
from zope.interface import implementer

from k3dreg.interfaces import IUsers
from k3dreg.log import make_logger
from k3dreg.model.credentials import BasicAuth
from k3dreg.model.errors import NotYet, UsageError
from k3dreg.protocol.htpasswd import parse_htpasswd
from k3dreg.streaming.flights import Flights
from k3dreg.streaming.workers import Workers

log = make_logger()

# Bytes.  A line has less than a hundred.
_LARGEST_FILE = 1024 * 1024
# Seconds between two looks whether the file has changed.
LOOK_EVERY = 1.0
# Seconds for which an outcome is kept, and how many of them.
KEPT_FOR = 60.0
_MOST_KEPT = 4096
# Passwords that are checked at once: of the worker threads most are left for pulls, whatever is thrown at the door.
_AT_ONCE = 2
# Passwords that wait for their turn.  Beyond that the asking is refused for now.
_MOST_WAITING = 200
# bcrypt looks at so many bytes and no more, and so do htpasswd and the official registry image.
_LONGEST_PASSWORD = 72

_State = tuple[int, int, int]


@define(eq=False)
class _Known:
    """What the file said, and what has come of it.  `state` is its modification time in ns, inode and size."""

    state: _State | None = None
    hashes: Mapping[str, bytes] = field(factory=dict)
    # Each with the time at which it was found.
    outcomes: OrderedDict[bytes, tuple[float, bool]] = field(factory=OrderedDict)
    checks: Flights[bytes, bool] = field(factory=Flights)


@implementer(IUsers)
class Passwords:
    """See `IUsers`.

    The file counts as it is now, within `LOOK_EVERY` seconds.  One that has become unusable is told of in one log
    line, and what it said before goes on to count.
    """

    def __init__(self, path: Path, workers: Workers) -> None:
        self._path = path
        self._workers = workers
        self._known = _Known()
        self._key = secrets.token_bytes(32)
        self._turns = DeferredSemaphore(_AT_ONCE)
        self._looked: float | None = None
        self._complaint = ""

    async def start(self) -> None:
        """Read the file.  Raises `UsageError`."""
        self._known = await self._workers.run(_read, self._path)
        self._looked = self._workers.clock.seconds()

    async def knows(self, shown: BasicAuth) -> bool:
        """See `IUsers`.  Raises `NotYet` when too many ask at once, and `StoreError` when k3dreg is stopping."""
        known = await self._current()
        key = hmac.digest(self._key, f"{shown.username}:{shown.password}".encode(), "sha256")
        now = self._workers.clock.seconds()
        found = known.outcomes.get(key)
        if found is not None and 0 <= now - found[0] < KEPT_FOR:
            known.outcomes.move_to_end(key)
            return found[1]
        if len(known.checks) >= _MOST_WAITING:
            raise NotYet("too many passwords are being checked", after=1)
        return await known.checks.join(key, lambda: self._check(known, key, shown))

    def shutdown(self) -> Deferred[None]:
        """Check nothing more."""
        return self._known.checks.shutdown()

    async def _check(self, known: _Known, key: bytes, shown: BasicAuth) -> bool:
        hashed = known.hashes.get(shown.username)
        # A name that is nobody's takes as long: it is checked against somebody's hash, always the same one.
        against = hashed or self._stand_in(known, shown.username)
        await self._turns.acquire()
        try:
            fits = await self._workers.run(_fits, shown.password.encode(), against)
        finally:
            self._turns.release()
        outcome = fits and hashed is not None
        known.outcomes[key] = (self._workers.clock.seconds(), outcome)
        while len(known.outcomes) > _MOST_KEPT:
            known.outcomes.popitem(last=False)
        return outcome

    def _stand_in(self, known: _Known, username: str) -> bytes:
        hashes = list(known.hashes.values())
        number = int.from_bytes(hmac.digest(self._key, username.encode(), "sha256"), "big")
        return hashes[number % len(hashes)] if hashes else b""

    async def _current(self) -> _Known:
        now = self._workers.clock.seconds()
        if self._looked is not None and 0 <= now - self._looked < LOOK_EVERY:
            return self._known
        self._looked = now
        try:
            read = await self._workers.run(_read, self._path, self._known)
        except UsageError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warn("the password file counts as it was before: {error}", error=error)
            return self._known
        self._complaint = ""
        if read is not self._known:
            log.info("the password file has changed: it has {count} users", count=len(read.hashes))
            self._known = read
        return self._known


def check_file(path: Path) -> None:
    """Raises `UsageError` for one that cannot be used.  Blocks."""
    _read(path)


def _read(path: Path, before: _Known | None = None) -> _Known:
    """What the file says; `before` itself if it has not changed.  Blocks.  Raises `UsageError`."""
    try:
        # Not blocking, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            state = (found.st_mtime_ns, found.st_ino, found.st_size)
            if before is not None and before.state == state:
                return before
            if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_FILE:
                raise UsageError("it is not a file of a sensible size")
            return _Known(state, parse_htpasswd(file.read(_LARGEST_FILE)))
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror})") from error


def _fits(password: bytes, hashed: bytes) -> bool:
    """Whether it is the password's hash.  Blocks, without holding up other threads."""
    return bool(hashed) and bcrypt.checkpw(password[:_LONGEST_PASSWORD], hashed)
