"""Run credential helpers: the programs `docker-credential-NAME`.

Protocol (docker/docker-credential-helpers, README): `get` reads the registry from standard input and writes JSON,
`{"ServerURL", "Username", "Secret"}`.  On failure it ends with status 1, and writes the reason to standard *output*.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ProcessProtocol, connectionDone
from twisted.python.failure import Failure

from k3dreg.formats.basic_auth import Credentials
from k3dreg.formats.text import one_line
from k3dreg.streaming.workers import Workers

# Seconds.  Docker has no limit.  Some helpers ask a cloud for a token, which takes a few seconds; a node waits 30 s for
# k3dreg's answer.
TIME_LIMIT = 15.0
# Bytes.  Identity tokens of clouds have some KiB.
LARGEST_ANSWER = 256 * 1024
# Helpers that run at once, and requests that wait for one to end.  They are limited because any client can ask for any
# registry.
AT_ONCE = 4
MOST_WAITING = 32
# A helper's name becomes a part of a program's name, so it must not contain a slash.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# The message of helpers of every platform that have no credentials for a registry.  That is not a failure.
_NONE = ("credentials not found in native keychain",)


class HelperFailed(Exception):
    """A helper gave no answer.  The text is a clause that says why, and contains no secret."""


class HelperRunner:
    """Runs helpers, a few at once.

    `reactor` spawns processes and tells the time.  `environment` is that of the helpers.  `time_limit` is in seconds.
    """

    def __init__(
        self, reactor: Any, workers: Workers, environment: Mapping[str, str], *, time_limit: float = TIME_LIMIT
    ) -> None:
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._workers = workers
        self._environment = dict(environment)
        self._time_limit = time_limit
        self._turns = DeferredSemaphore(AT_ONCE)

    async def is_installed(self, name: str) -> bool:
        """Return whether the program of the helper `name` is on the PATH."""
        return await self._find(name) is not None

    async def get(self, name: str, registry: str, extra: Mapping[str, str] | None = None) -> Credentials | None:
        """Return the credentials that the helper `name` has for `registry`, None for none.

        `registry` is spelled as helpers expect it: see `helper_key`.  `extra` is added to the helper's environment.
        Raises `HelperFailed`.  Cancelling kills the helper.
        """
        if not _NAME.fullmatch(name):
            raise HelperFailed(f"{name[:50]!r} is not the name of a credential helper")
        path = await self._find(name)
        if path is None:
            raise HelperFailed(f"docker-credential-{name} is not on the PATH")
        if len(self._turns.waiting) >= MOST_WAITING:
            raise HelperFailed(f"docker-credential-{name} was not asked: too many helpers run already")
        await self._turns.acquire()
        try:
            return await self._run(name, path, registry, extra or {})
        finally:
            self._turns.release()

    async def _run(self, name: str, path: str, registry: str, extra: Mapping[str, str]) -> Credentials | None:
        run = _Run(registry.encode("utf-8") + b"\n")
        # Its standard error is not logged, because it may contain secrets.
        self._reactor.spawnProcess(
            run,
            path,
            [path, "get"],
            env=self._environment | dict(extra),
            childFDs={0: "w", 1: "r", 2: "r"},
        )
        limit = self._clock.callLater(self._time_limit, run.kill, f"did not answer within {self._time_limit:.0f} s")
        try:
            succeeded, answer = await run.ended
        finally:
            if limit.active():
                limit.cancel()
        if run.killed_because:
            raise HelperFailed(f"docker-credential-{name} {run.killed_because}")
        return _credentials(name, succeeded, answer)

    async def _find(self, name: str) -> str | None:
        return await self._workers.run(
            shutil.which, f"docker-credential-{name}", path=self._environment.get("PATH", "")
        )


def _credentials(name: str, succeeded: bool, answer: bytes) -> Credentials | None:
    text = answer.decode("utf-8", "replace").strip()
    if not succeeded:
        if text.startswith(_NONE):
            return None
        raise HelperFailed(f"docker-credential-{name} failed: {_reason(text)}")
    try:
        value = json.loads(text)
        username, secret = value["Username"], value["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise HelperFailed(f"docker-credential-{name} answered with something other than credentials") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise HelperFailed(f"docker-credential-{name} answered with something other than credentials")
    credentials = Credentials.login(username, secret)
    return None if credentials.is_empty else credentials


def _reason(text: str) -> str:
    """Return a helper's error message in one line, unless it looks like JSON, which may contain a secret."""
    if not text or "{" in text:
        return "it gave no reason"
    return one_line(text)[:300]


class _Run(ProcessProtocol):
    """One run of a helper.  `ended` fires with whether it succeeded, and with its standard output."""

    def __init__(self, question: bytes) -> None:
        self.killed_because = ""
        self.ended: Deferred[tuple[bool, bytes]] = Deferred(lambda _: self.kill("was given up"))
        self._question = question
        self._answer = b""

    def kill(self, reason: str) -> None:
        """Kill the helper.  `ended` fires when it has ended."""
        self.killed_because = self.killed_because or reason
        if self.transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")
            # A child process of the helper may keep the pipes open.
            self.transport.loseConnection()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._question)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._answer += data
        if len(self._answer) > LARGEST_ANSWER:
            self.kill(f"answered with more than {LARGEST_ANSWER >> 10} KiB")

    def processEnded(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.callback((bool(reason.check(ProcessDone)), self._answer))
