"""Upload sessions: their bytes go to staging as they arrive, and they expire when the client sends no more."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.formats.upload_session import ContentRange, UploadSession
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, DigestNotMatched, K3dregError, TooManyUploads, UploadUnknown
from k3dreg.oci.reference import Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.use_cases import UploadStatus
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IBlobWriter, IStaging
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")

log = make_logger()

# Seconds without a request, or a byte, after which a session expires.  A client that lost its connection is back within
# minutes; until the session expires, its bytes take room on the disk.
SESSION_IDLE = 3600.0
# Sessions at a time.  Each has an open file once it has bytes, so a daemon that may open few files allows fewer.  A
# push has three to five at a time, so this suffices for a hundred pushes.
MOST_SESSIONS = 400
# Seconds without a request after which a session may be ended for a new one, when there are `most` sessions.
LEFT_ALONE = 60.0
# Seconds after its opening within which a client sends the first byte of a session.
_FIRST_BYTE = 10.0


class _Upload:
    """One session: its state, the writer of its bytes, and the work under way on it."""

    def __init__(self, repository: Repository, name: str, writer: IBlobWriter, opened: float) -> None:
        self.opened = opened  # by the reactor's clock
        self.repository = repository
        self.name = name
        self.writer = writer
        self.session = UploadSession()
        self.turn = DeferredLock()  # requests to one session wait for each other
        self.expiry: IDelayedCall | None = None  # set while no request to this session is under way
        self.resting_since = 0.0  # when the last request ended, by the reactor's clock
        self.last: Outcome[object] | None = None  # of the last call of the writer in a worker thread

    def status(self) -> UploadStatus:
        return UploadStatus(self.repository, self.name, self.session.received)


class UploadSessions:
    """All upload sessions.  Call `shutdown` at the end.

    A session belongs to the repository that it was opened for, whichever of this registry's names a client uses for it.
    """

    def __init__(
        self, staging: IStaging, names: OwnNames, workers: Workers, clock: IReactorTime, most: int = MOST_SESSIONS
    ) -> None:
        """`most` is the number of sessions that may exist at a time."""
        self._most = most
        self._staging = staging
        self._names = names
        self._workers = workers
        self._clock = clock
        self._uploads: dict[str, _Upload] = {}

    def open(self, repository: Repository, algorithm: str) -> UploadStatus:
        """Open a session.  Raises `TooManyUploads`, and `NotOurs` for a repository of another registry.

        `algorithm` is the likely one of the blob's digest.
        """
        own = self._names.ours(repository)
        self._make_room()
        # 144 random bits: a client cannot guess the ID of another client's session.  All characters are safe in a path.
        name = secrets.token_urlsafe(18)
        upload = _Upload(own, name, self._staging.begin(algorithm), self._clock.seconds())
        self._uploads[name] = upload
        self._rest(upload)
        return upload.status()

    def status(self, repository: Repository, session: str) -> UploadStatus:
        """Return how many bytes a session has received, and postpone its expiry.  Raises `UploadUnknown`."""
        upload = self._find(repository, session)
        if upload.expiry is not None:
            self._rest(upload)
        return upload.status()

    def cancel(self, repository: Repository, session: str) -> None:
        """End a session and delete its bytes.

        Raises `UploadUnknown`, also for a session whose blob is being committed: that cannot be undone.
        """
        upload = self._find(repository, session)
        if upload.session.has_ended:
            raise UploadUnknown("this upload has all its bytes, and ends")
        self._forget(upload)

    async def append(
        self,
        repository: Repository,
        session: str,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> UploadStatus:
        """Append the bytes of `body` to a session.

        Raises `UploadUnknown`, and what `UploadSession.begin`, `check` and `end` raise.
        """
        upload = self._find(repository, session)
        await upload.turn.acquire()
        try:
            await self._receive(upload, body, content_range, length)
            return upload.status()
        finally:
            upload.turn.release()

    async def finish(
        self,
        repository: Repository,
        session: str,
        digest: Digest,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> Repository:
        """Append the last bytes, if any, commit the session as a blob, and return the repository to add it to.

        Raises as `append` does, and `DigestNotMatched`, which ends the session.  After an error of `append` the session
        stays open, unless a write failed.
        """
        upload = self._find(repository, session)
        await upload.turn.acquire()
        try:
            await self._receive(upload, body, content_range, length)
            upload.session.commit()
            self._busy(upload)
            await self._work(upload, upload.writer.commit, digest, upload.session.received)
        except DigestMismatch as error:
            raise DigestNotMatched(str(error)) from error
        else:
            return upload.repository
        finally:
            upload.turn.release()
            if upload.session.has_ended:
                self._forget(upload)

    async def _receive(
        self, upload: _Upload, body: IByteStream, content_range: ContentRange | None, length: int | None
    ) -> None:
        """Write the body.  At the end, also after an error, the session has counted the bytes that its writer has."""
        if upload.last is not None:  # a cancelled request leaves its write running in the worker thread
            with contextlib.suppress(K3dregError):  # the earlier request's error; it has ended the session
                await upload.last.wait()
        session = upload.session
        session.begin(content_range, length)
        self._busy(upload)
        try:
            while data := await body.read():
                session.check(len(data))
                # Counted first: if this request is cancelled now, the bytes are written all the same.
                session.add(len(data))
                await self._work(upload, upload.writer.write, data)
            session.end()
        finally:
            if upload.last is None or upload.last.is_set:
                self._pause(upload)
            else:  # a worker thread still writes
                upload.last.wait().addBoth(lambda _: self._pause(upload))

    def _pause(self, upload: _Upload) -> None:
        """End the request under way, and let the session expire if no other follows."""
        upload.session.interrupt()
        if upload.name in self._uploads:
            self._rest(upload)

    def _work(self, upload: _Upload, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call a method of the session's writer in a worker thread.

        The next request to the session waits for the call, even if this request is cancelled before it returns.
        """
        done: Outcome[T] = Outcome()

        def failed(error: BaseException) -> None:
            if upload.name not in self._uploads:
                # The session was cancelled during this call, which aborted the writer: its error is a consequence.
                error = UploadUnknown("this upload session was cancelled")
            self._forget(upload)  # it may lack bytes that the client believes it has
            done.fail(error)

        self._workers.run(function, *args, **kwargs).addCallbacks(done.succeed, lambda failure: failed(failure.value))
        upload.last = done  # type: ignore[assignment]  # its result is not used
        return done.wait()

    def _find(self, repository: Repository, session: str) -> _Upload:
        upload = self._uploads.get(session)
        if upload is None or upload.repository != self._names.own(repository):
            raise UploadUnknown("no such upload session: it has ended or expired, or never existed")
        return upload

    def _make_room(self) -> None:
        """End a session if there are `most`.

        The first of these that there is: the oldest without a byte `_FIRST_BYTE` seconds after it was opened; the one
        with bytes that is idle for longest, if for `LEFT_ALONE` seconds; the oldest without a byte.  The client of a
        session without a byte loses least, but one that was just opened is about to be used.

        Raises `TooManyUploads` when there is none of these.
        """
        if len(self._uploads) < self._most:
            return
        now = self._clock.seconds()
        left = [upload for upload in self._uploads.values() if upload.expiry is not None]
        empty = next((upload for upload in left if not upload.session.received), None)  # in the order of their opening
        ended = empty
        if empty is None or now - empty.opened < _FIRST_BYTE:
            used = [upload for upload in left if upload.session.received and now - upload.resting_since >= LEFT_ALONE]
            ended = min(used, key=lambda upload: upload.resting_since, default=empty)
        if ended is None:
            raise TooManyUploads(f"{len(self._uploads)} uploads are under way; wait for some of them to end")
        self._forget(ended)

    def _rest(self, upload: _Upload) -> None:
        """Start, or restart, the time after which the session expires."""
        self._busy(upload)
        upload.resting_since = self._clock.seconds()
        upload.expiry = self._clock.callLater(SESSION_IDLE, self._expire, upload)

    def _busy(self, upload: _Upload) -> None:
        if upload.expiry is not None:
            upload.expiry.cancel()
            upload.expiry = None

    def _expire(self, upload: _Upload) -> None:
        upload.expiry = None
        log.info(
            "an upload into {repository} was cancelled: after {size} bytes the client sent nothing for {seconds:.0f} s",
            repository=upload.repository,
            size=upload.session.received,
            seconds=SESSION_IDLE,
        )
        self._forget(upload)

    def _forget(self, upload: _Upload) -> None:
        self._busy(upload)
        if self._uploads.pop(upload.name, None) is not None:
            if not upload.session.has_ended:
                upload.session.cancel()
            self._workers.clean_up(upload.writer.abort)

    def shutdown(self) -> None:
        """End all sessions and delete their bytes."""
        for upload in list(self._uploads.values()):
            self._forget(upload)
