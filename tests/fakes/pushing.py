"""Everything that a push goes through, for tests: a real store, a real list, no network, no threads."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any, cast

from twisted.internet.defer import Deferred

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository, Tag
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.push import Uploads
from k3dreg.registry.pushed_lookup import PushedLookup
from k3dreg.reporting.trace import Trace
from k3dreg.store.blob_store import BlobStore, open_store_in
from k3dreg.store.collection import Collector
from k3dreg.store.pushed import PushedContent
from k3dreg.store.state_directory import StateDirectory
from k3dreg.store.upload_staging import Staging
from tests.fakes.body import FakeBody
from tests.fakes.databases import open_database
from tests.fakes.pulling import pull_of
from tests.fakes.registry import FakeRegistry
from tests.fakes.stores import LIMIT, StoreTestCase
from tests.fakes.workers import InlineWorkers

APP, OTHER = Repository(None, "app"), Repository(None, "other")
NAMED = Repository("localhost:5005", "app")
CONFIG = b'{"a": 1}'


def described(media_type: str, data: bytes, algorithm: str = "sha256") -> dict[str, Any]:
    return Descriptor(media_type, Digest.of(data, algorithm), len(data)).to_json()


def image(*layers: bytes, **more: Any) -> bytes:
    """A manifest."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": described(media_types.OCI_CONFIG, CONFIG),
            "layers": [described(media_types.OCI_LAYER, data) for data in layers],
            **more,
        }
    ).encode()


def index(*manifests: bytes, **more: Any) -> bytes:
    entries = [described(media_types.OCI_MANIFEST, data) for data in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries, **more}).encode()


class UploadsCase(StoreTestCase):
    """Everything that a push goes through.  `engines` is the registry whose content is Docker's."""

    def setUp(self) -> None:
        self.workers = InlineWorkers()
        super().setUp()
        self.workers.clock = self.clock
        self.engines = FakeRegistry()
        self.names = OwnNames(["localhost:5005"])
        self.begin()

    def open(self, limit: int = LIMIT) -> BlobStore:
        state = StateDirectory(self.root)
        self.database = open_database(self.root)
        self.addCleanup(self.database.close)
        self.pushed = PushedContent(self.database, self.workers, self.clock)
        self.addCleanup(lambda pushed: self.result(pushed.close()), self.pushed)
        self.workers.clock = self.clock
        store: BlobStore = self.result(
            open_store_in(
                state,
                self.workers,
                limit,
                self.clock,
                self.pushed,
                closed=state.close,
            )
        )
        self.close_in_the_end(store)
        return store

    def begin(self) -> None:
        lookup = PushedLookup(self.pushed, self.store, self.names, self.is_engines)
        self.registry = pull_of(self.engines, self.names, lookup)
        self.uploads = Uploads(
            self.store,
            Staging(self.store),
            self.pushed,
            self.registry,
            self.names,
            self.workers,
            self.clock,
        )
        self.addCleanup(self._end, self.uploads, self.workers)
        self.collector = Collector(self.pushed, self.store, self.is_engines, self.clock)

    def _end(self, uploads: Uploads, workers: InlineWorkers) -> None:
        uploads.shutdown()
        workers.work_all()

    def restart(self, *, killed: bool = False) -> None:
        """End the process and start another; of one that was `killed` the store recorded nothing at its end."""
        session = (self.root / "session").read_bytes()
        self.uploads.shutdown()
        self.result(self.store.close())
        self.result(self.pushed.close())
        self.database.close()
        if killed:
            (self.root / "session").write_bytes(session)
        self.store = self.open()
        self.begin()

    def is_engines(self, digest: Digest) -> bool:
        return digest in self.engines.blobs

    def failed(self, awaitable: Awaitable[Any], error: type[Exception]) -> Exception:
        failure = self.failureResultOf(Deferred.fromCoroutine(cast(Any, awaitable)), error)
        return cast(Exception, failure.value)

    def push_blob(self, data: bytes, repository: Repository = APP, algorithm: str = "sha256") -> Digest:
        digest, session = Digest.of(data, algorithm), self.uploads.open(repository).session
        self.result(self.uploads.commit(repository, session, digest, FakeBody([data]), None, len(data)))
        return digest

    def push(self, data: bytes, *tags: str, repository: Repository = APP, digest: Digest | None = None) -> Digest:
        media_type = json.loads(data)["mediaType"]
        taken = self.result(
            self.uploads.push_manifest(repository, data, media_type, digest, [Tag(tag) for tag in tags], Trace())
        )
        return cast(Digest, taken.digest)

    def read(self, digest: Digest, repository: Repository = APP) -> bytes:
        blob = self.result(self.registry.blob(repository, digest, Trace()))
        return cast(bytes, self.result(blob.read()))
