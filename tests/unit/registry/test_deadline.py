"""No answer begins later than a node waits, and the work behind a late one goes on."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, NotYet
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.deadline import WithDeadline
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob

REPOSITORY = Repository.parse("app", "docker.io")
DATA = b"{}"
DIGEST = Digest.of(DATA)
BLOB = MemoryBlob(DIGEST, DATA)


class Slow:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.manifest_ready: Deferred[None] = Deferred()
        self.bytes_ready: Deferred[None] = Deferred()

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        await self.manifest_ready
        return ServedManifest(Descriptor("", DIGEST, len(DATA)), self._open)

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        return await self._open()

    async def _open(self) -> IBlob:
        await self.bytes_ready
        return BLOB


class PromptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.slow = Slow()
        self.prompt = WithDeadline(self.slow, self.clock)

    def manifest(self) -> Deferred[ServedManifest]:
        return Deferred.fromCoroutine(self.prompt.manifest(Reference(REPOSITORY, DIGEST), None, Trace()))

    def blob(self) -> Deferred[IBlob]:
        return Deferred.fromCoroutine(self.prompt.blob(REPOSITORY, DIGEST, Trace()))

    def opened(self, served: ServedManifest) -> Deferred[IBlob]:
        async def open_it() -> IBlob:
            return await served.open()

        return Deferred.fromCoroutine(open_it())

    def test_what_comes_in_time_is_passed_on(self) -> None:
        asked = self.manifest()
        self.clock.advance(17)
        self.slow.manifest_ready.callback(None)
        served = self.successResultOf(asked)
        opened = self.opened(served)
        self.slow.bytes_ready.callback(None)
        self.assertIs(self.successResultOf(opened), BLOB)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_manifest_that_is_not_known_in_time_is_not_yet_there(self) -> None:
        asked = self.manifest()
        self.clock.advance(17.9)
        self.assertNoResult(asked)
        self.clock.advance(0.2)
        error = self.failureResultOf(asked, NotYet).value
        assert isinstance(error, NotYet)
        self.assertEqual(error.after, 10)

    def test_a_manifest_and_its_bytes_have_the_time_together(self) -> None:
        asked = self.manifest()
        self.clock.advance(10)
        self.slow.manifest_ready.callback(None)
        opened = self.opened(self.successResultOf(asked))
        self.clock.advance(7.9)
        self.assertNoResult(opened)
        self.clock.advance(0.2)
        self.failureResultOf(opened, NotYet)

    def test_a_blob_that_has_not_begun_in_time_is_not_yet_there(self) -> None:
        asked = self.blob()
        self.clock.advance(18.1)
        self.failureResultOf(asked, NotYet)

    def test_errors_pass(self) -> None:
        asked = self.blob()
        self.slow.bytes_ready.errback(BlobUnknown("no"))
        self.failureResultOf(asked, BlobUnknown)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_leaves_is_let_go(self) -> None:
        asked = self.blob()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
