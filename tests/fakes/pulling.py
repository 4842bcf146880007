"""The use case of a pull for tests: an engine in memory, a store on disk, and what a node does."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import ImageStore
from k3dreg.images.catalogue import open_catalogue
from k3dreg.images.export_source import ExportSource
from k3dreg.oci.digest import Digest
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.engine_registry import EngineRegistry
from k3dreg.registry.resolver import Resolver
from k3dreg.reporting.trace import Trace
from k3dreg.store.blob_store import BlobStore, open_store
from k3dreg.streaming.content import IBlob, ServedManifest
from tests.fakes.engine import FakeEngine
from tests.fakes.workers import InlineWorkers

HELLO = Reference.parse(Repository.parse("library/hello", "docker.io"), "1")
PLENTY = 10**9


def by_digest(digest: Digest) -> Reference:
    return Reference(HELLO.repository, digest)


class PullCase(SynchronousTestCase):
    store_kind = ImageStore.CONTAINERD
    api = "1.51"

    def setUp(self) -> None:
        self.clock = Clock()
        self.engine = FakeEngine(self.store_kind, api=self.api)
        self.state = Path(self.mktemp())
        self.trace = Trace()
        self.start()

    def start(self, limit: int = PLENTY) -> None:
        """Start k3dreg, or start it anew on the same state."""
        workers = InlineWorkers(self.clock)
        client = self.engine.client(self.clock)
        self.store: BlobStore = self.now(open_store(self.state, workers, limit, self.clock))
        self.addCleanup(lambda store: self.now(store.close()), self.store)
        self.catalogue = catalogue = self.now(open_catalogue(self.state, workers))
        self.source = ExportSource(client, self.store, catalogue, workers, self.clock)
        self.resolver = Resolver(client, self.clock)
        self.registry = EngineRegistry(self.resolver, [self.source], self.store, catalogue)

    def restart(self) -> None:
        self.now(self.store.close())
        self.start()

    def now(self, work):  # type: ignore[no-untyped-def]
        return self.successResultOf(Deferred.fromCoroutine(work))

    def begin(self, work):  # type: ignore[no-untyped-def]
        deferred = Deferred.fromCoroutine(work)
        self.engine.flush()
        return deferred

    def manifest(self, reference: Reference = HELLO) -> ServedManifest:
        self.trace = Trace()
        served: ServedManifest = self.successResultOf(self.begin(self.registry.manifest(reference, None, self.trace)))
        return served

    def fetch(self, digest: Digest) -> bytes:
        """A blob's bytes as a node gets them."""
        self.trace = Trace()
        blob: IBlob = self.successResultOf(self.begin(self.registry.blob(HELLO.repository, digest, self.trace)))
        data: bytes = self.successResultOf(self.begin(blob.read()))
        self.assertEqual(len(data), blob.size)
        return data

    def fetch_manifest(self, reference: Reference = HELLO) -> bytes:
        served = self.manifest(reference)
        blob = self.successResultOf(self.begin(served.open()))
        data: bytes = self.successResultOf(self.begin(blob.read()))
        self.assertEqual(Digest.of(data), served.descriptor.digest)
        self.assertEqual(len(data), served.descriptor.size)
        return data

    def pull(self) -> list[Digest]:
        """What a node does; the digests of everything it got."""
        root = self.manifest().descriptor
        document = Manifest.parse(self.fetch_manifest(by_digest(root.digest)), root.media_type)
        got = [root.digest]
        if document.is_index:
            child = document.manifests[0]
            document = Manifest.parse(self.fetch_manifest(by_digest(child.digest)), child.media_type)
            got.append(child.digest)
        assert document.config is not None
        for part in (document.config, *document.layers):
            self.assertEqual(Digest.of(self.fetch(part.digest)), part.digest)
            got.append(part.digest)
        return got
