"""Upload sessions: requests of every kind, in any order, broken off at any point, with time and restarts between them.

Against a real store, and the plainest model there is: the bytes that each session has, and the blobs that are done.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import Deferred

from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.digest import ALGORITHMS, Digest
from k3dreg.oci.errors import DigestNotMatched, K3dregError, SizeNotMatched, UploadOutOfOrder, UploadUnknown
from k3dreg.oci.reference import Repository
from k3dreg.registry.upload_sessions import SESSION_IDLE
from tests.fakes.body import FakeBody
from tests.fakes.databases import blobs_in
from tests.fakes.pushing import APP, OTHER, UploadsCase
from tests.fakes.workers import InlineWorkers

NAMES = Bundle("names")
CHUNKS = st.lists(st.binary(min_size=1, max_size=6), max_size=3)
ALGORITHM = st.sampled_from(sorted(ALGORITHMS))
# Where a chunk says that it begins: nowhere, where it should, or off by so much.
WHERE = st.none() | st.just(0) | st.integers(-3, 3)


class Sessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.case = UploadsCase()
        self.case.setUp()
        self.received: dict[str, bytes] = {}
        self.idle_since: dict[str, float] = {}
        self.blobs: dict[tuple[Repository, Digest], bytes] = {}
        self.wrong: set[Digest] = set()

    def done(self, awaitable: Awaitable[Any]) -> BaseException | None:
        """What it raised."""
        outcome: list[Any] = []
        Deferred.fromCoroutine(awaitable).addBoth(outcome.append)  # type: ignore[arg-type]
        (result,) = outcome
        error: BaseException | None = getattr(result, "value", None)
        assert error is None or isinstance(error, K3dregError), result
        return error

    def touched(self, name: str) -> None:
        self.idle_since[name] = self.case.clock.seconds()

    def gone(self, name: str) -> None:
        self.received.pop(name, None)

    def asked(self, name: str, size: int, where: int | None) -> ContentRange | None:
        start = len(self.received.get(name, b"")) + (where or 0)
        return None if where is None or size == 0 or start < 0 else ContentRange(start, start + size)

    @rule(target=NAMES, algorithm=ALGORITHM)
    def post(self, algorithm: str) -> str:
        name = self.case.uploads.open(APP, algorithm).session
        self.received[name] = b""
        self.touched(name)
        return name

    @rule(
        name=NAMES,
        chunks=CHUNKS,
        where=WHERE,
        lie=st.sampled_from([0, 0, 0, 1, -1]),
        chunked=st.booleans(),
    )
    def patch(self, name: str, chunks: list[bytes], where: int | None, lie: int, chunked: bool) -> None:
        """`lie` is by how much the body is longer than its range and its length say."""
        data = b"".join(chunks)
        size = max(0, len(data) - lie)
        asked = self.asked(name, size, where)
        length = None if chunked else size
        error = self.done(self.case.uploads.append(APP, name, FakeBody(chunks), asked, length))
        if name not in self.received:
            assert isinstance(error, UploadUnknown)
        elif asked is not None and where:
            assert isinstance(error, UploadOutOfOrder)
            assert error.received == len(self.received[name])
        elif size != len(data) and (asked is not None or length is not None):
            assert isinstance(error, SizeNotMatched)
            # What came before the lie was found out counts, and the client is told of it.
            taken = self.case.uploads.status(APP, name).received
            assert len(self.received[name]) <= taken <= len(self.received[name]) + size
            self.received[name] = (self.received[name] + data)[:taken]
            self.touched(name)
        else:
            assert error is None
            self.received[name] += data
            self.touched(name)

    @rule(name=NAMES, chunks=CHUNKS)
    def patch_broken_off(self, name: str, chunks: list[bytes]) -> None:
        """The client leaves in the middle of its body."""
        if name not in self.received:
            return
        body = FakeBody(chunks, open_ended=True)
        sending = Deferred.fromCoroutine(self.case.uploads.append(APP, name, body, None, None))
        sending.addErrback(lambda _: None)
        sending.cancel()
        body.close()
        self.received[name] += b"".join(chunks)
        self.touched(name)

    @rule(
        name=NAMES,
        last=CHUNKS,
        where=WHERE,
        algorithm=ALGORITHM,
        right=st.sampled_from([True, True, False]),
    )
    def put(self, name: str, last: list[bytes], where: int | None, algorithm: str, right: bool) -> None:
        data = b"".join(last)
        whole = self.received.get(name, b"") + data
        digest = Digest.of(whole if right else whole + b"!", algorithm)
        asked = self.asked(name, len(data), where)
        error = self.done(self.case.uploads.commit(APP, name, digest, FakeBody(last), asked, len(data)))
        if name not in self.received:
            assert isinstance(error, UploadUnknown)
        elif asked is not None and where:
            assert isinstance(error, UploadOutOfOrder)
        else:
            assert (error is None) if right else isinstance(error, DigestNotMatched)
            if right:
                self.blobs[APP, digest] = whole
            else:
                self.wrong.add(digest)
            self.gone(name)

    @rule(name=NAMES, other=st.booleans())
    def get(self, name: str, other: bool) -> None:
        """In another repository nobody has heard of it."""
        try:
            status = self.case.uploads.status(OTHER if other else APP, name)
        except UploadUnknown:
            assert other or name not in self.received
        else:
            assert not other
            assert status.received == len(self.received[name])
            self.touched(name)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        try:
            self.case.uploads.cancel(APP, name)
        except UploadUnknown:
            assert name not in self.received
        self.gone(name)

    @rule(digest=st.integers(0, 5))
    def delete_blob(self, digest: int) -> None:
        known = sorted(self.blobs, key=str)
        if digest < len(known):
            assert self.done(self.case.uploads.delete_blob(*known[digest])) is None
            del self.blobs[known[digest]]

    @rule(seconds=st.sampled_from([1.0, SESSION_IDLE / 2, SESSION_IDLE]))
    def time_passes(self, seconds: float) -> None:
        self.case.clock.advance(seconds)
        now = self.case.clock.seconds()
        for name in [name for name in self.received if now - self.idle_since[name] >= SESSION_IDLE]:
            self.gone(name)

    @rule()
    def restart(self) -> None:
        """Sessions end with the process; what is done stays."""
        self.case.workers = InlineWorkers(self.case.clock)
        self.case.restart()
        self.received.clear()

    @invariant()
    def sessions_have_what_they_were_told_and_staging_has_nothing_else(self) -> None:
        staged = self.case.staged()
        assert len(staged) <= sum(1 for data in self.received.values() if data)

    @invariant()
    def what_was_acknowledged_is_there_whole_and_nothing_else_is(self) -> None:
        case = self.case
        assert set(blobs_in(case.database, APP)) == {digest for _, digest in self.blobs}
        for (repository, digest), data in self.blobs.items():
            assert case.read(digest, repository) == data
        for digest in self.wrong - {digest for _, digest in self.blobs}:
            # It can be here only as what it really is: other bytes of the run may hash to it.
            held = case.store.get(digest)
            assert held is None or Digest.of(case.result(held.read()), digest.algorithm) == digest

    def teardown(self) -> None:
        self.case.uploads.shutdown()
        self.case.result(self.case.store.close())
        self.case.result(self.case.pushed.close())
        self.case.database.close()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=30)
