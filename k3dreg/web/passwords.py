"""The users of this registry, out of a password file (`--htpasswd`).

A bcrypt hash takes from 2 ms (htpasswd's default) to seconds to check, on purpose.  So it is checked in worker threads
that do nothing else, a few at a time, and the outcome is kept in memory, under a keyed hash of what was shown.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

import bcrypt
from attrs import field, frozen
from cachetools import LRUCache, TTLCache
from twisted.internet.defer import Deferred

from k3dreg.config.password_file import FileState, read_password_file
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.errors import UsageError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers
from k3dreg.web.password_checks import Checks

log = make_logger()

# Seconds between two looks whether the file has changed.
LOOK_EVERY = 1.0
# Seconds for which it is kept that a password is wrong, and how many outcomes of either kind are kept.
KEPT_FOR = 60.0
_MOST_KEPT = 4096
# Passwords that are checked at once.
AT_ONCE = 2
# Threads: one more reads the file.
THREADS = AT_ONCE + 1
# bcrypt looks at so many bytes and no more, and so do htpasswd and the official registry image.
_LONGEST_PASSWORD = 72


@frozen
class _Known:
    """What the file said.  `state` is its modification time in ns, inode and size."""

    state: FileState | None = None
    hashes: Mapping[str, bytes] = field(factory=dict)


class Passwords:
    """See `IUsers`.

    The file counts as it is now, within `LOOK_EVERY` seconds.  One that has become unusable is told of in one log
    line, and what it said before goes on to count.
    """

    def __init__(self, path: Path, workers: Workers, names: set[str] | None = None) -> None:
        """`names` gets the names of all users that the file ever has."""
        self._path = path
        self._workers = workers
        self._names = set() if names is None else names
        self._known = _Known()
        self._key = secrets.token_bytes(32)
        self._checks = Checks(workers.clock, AT_ONCE)
        self._looks: SingleFlight[None, _Known] = SingleFlight()
        self._looked: float | None = None
        self._complaint = ""
        # By a keyed hash of name, password and the user's line of the file: a changed line makes another.
        self._right: LRUCache[bytes, bool] = LRUCache(_MOST_KEPT)
        self._wrong: TTLCache[bytes, bool] = TTLCache(_MOST_KEPT, KEPT_FOR, workers.clock.seconds)

    async def start(self) -> None:
        """Read the file.  Raises `UsageError`."""
        self._learn(await self._workers.run(_read, self._path))
        self._looked = self._workers.clock.seconds()

    async def knows(self, shown: BasicAuth, client: str = "") -> bool:
        """See `IUsers`.  Raises `NotYet` when too many ask at once, and `CancelledError` when k3dreg is stopping."""
        now = self._workers.clock.seconds()
        # A name that is not in the file may have been added a moment ago.
        if self._looked is None or not 0 <= now - self._looked < LOOK_EVERY or shown.username not in self._known.hashes:
            await self._looks.join(None, self._look)
        hashed = self._known.hashes.get(shown.username)
        key = self._digest(f"{shown.username}:{shown.password}\n".encode() + (hashed or b""))
        if self._right.get(key):
            return True
        if self._wrong.get(key):
            return False
        return await self._checks.ask(key, client, lambda: self._check(key, shown, hashed))

    def shutdown(self) -> None:
        """Check nothing more.  Requests that wait for a check fail with `CancelledError`."""
        self._checks.close()

    def _check(self, key: bytes, shown: BasicAuth, hashed: bytes | None) -> Deferred[bool]:
        # A name that is nobody's takes as long: it is checked against some user's hash, always the same one.
        against = hashed or self._stand_in(shown.username)

        def checked(fits: bool) -> bool:
            if fits and hashed is not None:
                self._right[key] = True
            else:
                self._wrong[key] = True
            return fits and hashed is not None

        return self._workers.run(_fits, shown.password.encode(), against).addCallback(checked)

    def _stand_in(self, username: str) -> bytes:
        hashes = list(self._known.hashes.values())
        number = int.from_bytes(self._digest(username.encode()), "big")
        return hashes[number % len(hashes)] if hashes else b""

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")

    async def _look(self) -> _Known:
        self._looked = self._workers.clock.seconds()
        try:
            read = await self._workers.run(_read, self._path, self._known)
        except UsageError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warn("the password file cannot be used, so k3dreg keeps the users it knows: {error}", error=error)
            return self._known
        self._complaint = ""
        if read is not self._known:
            log.info("the password file has changed: it has {count} users", count=len(read.hashes))
            self._learn(read)
        return self._known

    def _learn(self, known: _Known) -> None:
        self._known = known
        self._names.update(known.hashes)


def _read(path: Path, before: _Known | None = None) -> _Known:
    """Return what the file says; `before` itself if it has not changed.  Blocks.  Raises `UsageError`."""
    read = read_password_file(path, None if before is None else before.state)
    if read is None:
        assert before is not None
        return before
    return _Known(*read)


def _fits(password: bytes, hashed: bytes) -> bool:
    """Whether it is the password's hash.  Blocks, without holding up other threads."""
    return bool(hashed) and bcrypt.checkpw(password[:_LONGEST_PASSWORD], hashed)
