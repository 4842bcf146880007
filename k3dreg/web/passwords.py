"""The users of this registry, from a password file (`--htpasswd`).

Checking a bcrypt hash takes from 2 ms (htpasswd's default) to seconds, by design.  So separate worker threads check
them, a few at a time, and the outcome is kept in memory, by a keyed hash of the user and password.
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

# Seconds between two checks whether the file has changed.
LOOK_EVERY = 1.0
# Seconds for which a wrong password is remembered, and how many right and how many wrong ones are.
KEPT_FOR = 60.0
_MOST_KEPT = 4096
# Passwords that are checked at a time.
AT_ONCE = 2
# Worker threads: one more reads the file.
THREADS = AT_ONCE + 1
# Bytes of a password that bcrypt uses; htpasswd and the official registry image ignore the rest, too.
_LONGEST_PASSWORD = 72


@frozen
class _Known:
    """The content of the file: hashes by user.  `state` is its modification time in ns, inode and size."""

    state: FileState | None = None
    hashes: Mapping[str, bytes] = field(factory=dict)


class Passwords:
    """Checks passwords against the password file.  Implements `IUsers`.

    Call `start` before `knows`, and `shutdown` at the end.  A change of the file counts after at most `LOOK_EVERY`
    seconds.  If the file becomes unusable, one log line says so, and its previous content remains valid.
    """

    def __init__(self, path: Path, workers: Workers, names: set[str] | None = None) -> None:
        """The names of all users that the file has now or later are added to `names`."""
        self._path = path
        self._workers = workers
        self._names = set() if names is None else names
        self._known = _Known()
        self._key = secrets.token_bytes(32)
        self._checks = Checks(workers.clock, AT_ONCE)
        self._looks: SingleFlight[None, _Known] = SingleFlight()
        self._looked: float | None = None
        self._complaint = ""
        # The keys are keyed hashes of the name, the password and the user's hash in the file, so an outcome does not
        # outlive a change of that hash.
        self._right: LRUCache[bytes, bool] = LRUCache(_MOST_KEPT)
        self._wrong: TTLCache[bytes, bool] = TTLCache(_MOST_KEPT, KEPT_FOR, workers.clock.seconds)

    async def start(self) -> None:
        """Read the file.  Raises `UsageError`."""
        self._learn(await self._workers.run(_read, self._path))
        self._looked = self._workers.clock.seconds()

    async def knows(self, shown: BasicAuth, client: str = "") -> bool:
        """Return whether it is the user and password of a user in the file.

        `client` is the address of the client: clients take turns.  Raises `NotYet` when too many checks wait, and
        `CancelledError` when k3dreg is stopping.
        """
        now = self._workers.clock.seconds()
        # An unknown name may have been added to the file a moment ago.
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
        # An unknown name is checked against some user's hash, always the same, so that the time does not show that the
        # name is unknown.
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
    """Return the content of the file; `before` itself if it has not changed.  Blocks.  Raises `UsageError`."""
    read = read_password_file(path, None if before is None else before.state)
    if read is None:
        assert before is not None
        return before
    return _Known(*read)


def _fits(password: bytes, hashed: bytes) -> bool:
    """Return whether `hashed` is the password's hash.  Blocks for up to seconds, but releases the GIL."""
    return bool(hashed) and bcrypt.checkpw(password[:_LONGEST_PASSWORD], hashed)
