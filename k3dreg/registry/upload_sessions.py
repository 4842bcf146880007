"""Upload sessions: their bytes go to staging as they come, and they end when nobody comes back to them."""

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

# Seconds without a request, or a byte, after which a session is forgotten.  A client that lost its connection is back
# within minutes; what it left behind takes room on the disk until then.
SESSION_IDLE = 3600.0
# Sessions at a time.  Each holds an open file once it has bytes, so a daemon that may open few files has fewer.  A push
# has three to five at a time, so this is a hundred pushes.
MOST_SESSIONS = 400
# Seconds after which a session without a request may make room for another, when there are that many.
LEFT_ALONE = 60.0


class _Upload:
    """One session: its state, its bytes, and who works on it."""

    def __init__(self, repository: Repository, name: str, writer: IBlobWriter) -> None:
        self.repository = repository
        self.name = name
        self.writer = writer
        self.session = UploadSession()
        self.turn = DeferredLock()  # requests to one session wait for each other
        self.expiry: IDelayedCall | None = None  # set while no request works on it
        self.resting_since = 0.0
        self.last: Outcome[object] | None = None  # the last piece of work on the writer

    def status(self) -> UploadStatus:
        return UploadStatus(self.repository, self.name, self.session.received)


class UploadSessions:
    """All sessions there are.  A session belongs to the repository that it was opened for, whatever that is called."""

    def __init__(
        self, staging: IStaging, names: OwnNames, workers: Workers, clock: IReactorTime, most: int = MOST_SESSIONS
    ) -> None:
        """`most`: how many sessions there may be at a time."""
        self._most = most
        self._staging = staging
        self._names = names
        self._workers = workers
        self._clock = clock
        self._uploads: dict[str, _Upload] = {}

    def open(self, repository: Repository, algorithm: str) -> UploadStatus:
        """Raises `TooManyUploads`, and `NotOurs` for a repository of another registry."""
        own = self._names.ours(repository)
        self._make_room()
        # Nobody can guess it, so nobody can write into another's upload; and it is safe in a path.
        name = secrets.token_urlsafe(18)
        upload = _Upload(own, name, self._staging.begin(algorithm))
        self._uploads[name] = upload
        self._rest(upload)
        return upload.status()

    def status(self, repository: Repository, session: str) -> UploadStatus:
        """Raises `UploadUnknown`.  It counts as a request, but not as the end of one that is under way."""
        upload = self._find(repository, session)
        if upload.expiry is not None:
            self._rest(upload)
        return upload.status()

    def cancel(self, repository: Repository, session: str) -> None:
        """Raises `UploadUnknown`, also for one that is just becoming a blob: it is too late for that."""
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
        """More bytes.  Raises `UploadUnknown`, and as `UploadSession.begin` and `end` do."""
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
        """The last bytes, or none, and then it is a blob in the store.  Returns whose it is to be.

        Raises as `append` does, and `DigestNotMatched`.  The session has ended, unless the request did not fit it.
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
        """Take the body.  Whatever happens, the session then has counted what its writer has."""
        if upload.last is not None:  # whoever gave up an answer did not give up the work
            with contextlib.suppress(K3dregError):  # which was the other request's; the session has ended then
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
        """No request works on it any more."""
        upload.session.interrupt()
        if upload.name in self._uploads:
            self._rest(upload)

    def _work(self, upload: _Upload, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Let a worker thread do it.  The next request to the session waits for it, this one may be cancelled."""
        done: Outcome[T] = Outcome()

        def failed(error: BaseException) -> None:
            if upload.name not in self._uploads:
                # It was cancelled, or expired, under this piece of work: what the writer says of that is no fault.
                error = UploadUnknown("this upload session was cancelled")
            self._forget(upload)  # its bytes are not what the client believes they are
            done.fail(error)

        self._workers.run(function, *args, **kwargs).addCallbacks(done.succeed, lambda failure: failed(failure.value))
        upload.last = done  # type: ignore[assignment]  # what it gives is not looked at
        return done.wait()

    def _find(self, repository: Repository, session: str) -> _Upload:
        upload = self._uploads.get(session)
        if upload is None or upload.repository != self._names.own(repository):
            raise UploadUnknown("no such upload session: it has ended or expired, or never existed")
        return upload

    def _make_room(self) -> None:
        """For one more session, at the cost of the oldest that never got a byte, or of one that was left alone.

        A session without a byte costs its client nothing, as it can open another; and a client sends its first byte
        at once.  Raises `TooManyUploads` when all have bytes and none was left alone for long.
        """
        if len(self._uploads) < self._most:
            return
        now = self._clock.seconds()
        left = [upload for upload in self._uploads.values() if upload.expiry is not None]
        empty = next((upload for upload in left if not upload.session.received), None)  # in the order of their opening
        oldest = empty or min(left, key=lambda upload: upload.resting_since, default=None)
        if oldest is None or (oldest is not empty and now - oldest.resting_since < LEFT_ALONE):
            raise TooManyUploads(f"{len(self._uploads)} uploads are under way; wait for some of them to end")
        self._forget(oldest)

    def _rest(self, upload: _Upload) -> None:
        """Nothing happens to it now: it expires, unless something does."""
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
        """Give up all sessions."""
        for upload in list(self._uploads.values()):
            self._forget(upload)
