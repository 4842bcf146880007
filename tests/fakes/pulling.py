"""The use case of a pull for tests: an engine in memory, a store on disk, and what a node does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import ImageStore
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.images.content_map import ContentMap
from k3dreg.images.export_source import ExportSource
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.engine_content import EngineContent
from k3dreg.registry.one_remote import OneRemote
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pull import Pull
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.pull_in_progress import PullInProgress
from k3dreg.registry.pushed_lookup import PushedLookup
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.use_cases import IFallback, IRegistry
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.blob_store import BlobStore, open_store
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.upstream.origin import ICredentialSource
from tests.fakes.databases import open_database
from tests.fakes.engine import FakeEngine
from tests.fakes.workers import InlineWorkers

HELLO = Reference.parse(Repository.parse("library/hello", "docker.io"), "1")
PLENTY = 10**9


def by_digest(digest: Digest) -> Reference:
    return Reference(HELLO.repository, digest)


class NothingPushed:
    """A `PushedLookup` of an empty registry."""

    def manifest(self, reference: Reference) -> ServedManifest | None:
        return None

    def blob(self, repository: Repository, digest: Digest) -> IBlob | None:
        return None

    def only_pushed(self, digest: Digest) -> bool:
        return False


class Arrived:
    """A content store, to which tests add what has arrived."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}

    async def loose(self, descriptor: Descriptor) -> IBlob | None:
        data = self.blobs.get(descriptor.digest)
        return None if data is None else MemoryBlob(descriptor.digest, data)


class InDocker:
    """Docker's part of a pull, played by a registry in memory: resolver, credentials, content and pulls under way.

    An image, and its root, is the manifest that the registry has; credentials reach the registry as they are.
    """

    def __init__(self, registry: IRegistry) -> None:
        self._registry = registry

    async def registry_auth(self, reference: Reference, authorization: BasicAuth | None) -> Any:
        return authorization

    def refused(self, repository: Repository, authorization: BasicAuth | None) -> None:
        pass

    async def image(self, reference: Reference, registry_auth: Callable[[], Awaitable[Any]], trace: Trace) -> Any:
        served = await self._registry.manifest(reference, await registry_auth(), trace)
        return _Image(served.descriptor.digest, served)

    async def root(self, image: _Image, reference: Reference, trace: Trace) -> ServedManifest:
        return image.served

    def served(self, root: ServedManifest, trace: Trace) -> ServedManifest:
        return root

    async def manifest(self, digest: Digest, trace: Trace) -> ServedManifest | None:
        return None

    async def blob(self, digest: Digest, trace: Trace) -> IBlob:
        return await self._registry.blob(HELLO.repository, digest, trace)

    async def answered_early(self, answer: Awaitable[ServedManifest]) -> ServedManifest:
        return await answer

    def part(self, digest: Digest) -> None:
        return None


@frozen
class _Image:
    id: Digest
    served: ServedManifest


def pull_of(
    docker: IRegistry,
    names: OwnNames,
    pushed: PushedLookup | None = None,
    remote: OneRemote | None = None,
    fallback: IFallback | None = None,
) -> Pull:
    """A pull in which `docker` plays Docker's part; with a `fallback` that is wanted."""
    engine = cast(Any, InDocker(docker))
    return Pull(
        cast(Any, NothingPushed()) if pushed is None else pushed,
        names,
        OneRemote(None, names) if remote is None else remote,
        *(engine, engine, engine, engine, None),
        fallback,
        fallback is not None,
    )


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
        self.database = open_database(self.state)
        self.addCleanup(self.database.close)
        self.content_map = ContentMap(self.database, workers)
        arrivals = Arrivals(self.store, workers)
        self.source = ExportSource(client, self.store, arrivals, self.content_map, workers, self.clock)
        self.resolver = Resolver(client, self.clock)
        self.arrived = Arrived()
        self.content = EngineContent([self.source], self.store, self.content_map)
        self.use(None)

    def use(self, host: ICredentialSource | None) -> None:
        """Let pulls have the credentials of `host`."""
        client, credentials, names = self.engine.client(self.clock), PullCredentials(host), OwnNames()
        self.in_progress = PullInProgress(
            client, self.arrived, self.resolver.is_pulling, credentials.registry_auth, self.clock
        )
        self.registry = Pull(
            cast(PushedLookup, NothingPushed()),
            names,
            OneRemote(None, names),
            self.resolver,
            credentials,
            self.in_progress,
            self.content,
        )

    def restart(self) -> None:
        self.now(self.store.close())
        self.database.close()
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
