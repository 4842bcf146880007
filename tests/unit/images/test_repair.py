"""Images of which Docker has lost blobs: seen, mended by a build or by a load, and otherwise explained."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IBodyProducer

from k3dreg.docker.image import ChildManifest, EngineImage, ImageStore
from k3dreg.formats.basic_auth import Credentials
from k3dreg.images.repair import ADVICE, Repair, broken_children
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import AuthenticationRequired, BlobUnknown, ImageIncomplete, K3dregError, UpstreamFailed
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.trace import Trace
from k3dreg.store.blob_store import open_store
from k3dreg.streaming.content import IBlob, IByteStream
from k3dreg.streaming.memory_blob import MemoryBlob
from tests.fakes.workers import InlineWorkers

CONFIG, LAYERS = b'{"os":"linux"}', (b"one" * 1000, b"two" * 70)
FOREIGN = {
    "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "digest": str(Digest.of(b"x")),
    "size": 1,
}
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
APP = Repository("127.0.0.1:5900", "team/app")
TAG = Reference.parse(APP, "1")


def described(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": described(media_types.OCI_CONFIG, CONFIG),
        "layers": [*(described(media_types.OCI_LAYER, layer) for layer in LAYERS), FOREIGN],
    }
).encode()
INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [
            described(media_types.OCI_MANIFEST, b"arm64's", platform=ARM64.to_json()),
            described(media_types.OCI_MANIFEST, MANIFEST, platform=AMD64.to_json()),
        ],
    }
).encode()


def child(data: bytes, available: bool, held: int, platform: Platform | None = None) -> ChildManifest:
    described = Descriptor(media_types.OCI_MANIFEST, Digest.of(data), len(data), platform)
    return ChildManifest(described, available, "image", held)


def image(root: bytes = MANIFEST, *children: ChildManifest) -> EngineImage:
    return EngineImage(
        Digest.of(root),
        ImageStore.CONTAINERD,
        ("127.0.0.1:5900/team/app:1",),
        (f"127.0.0.1:5900/team/app@{Digest.of(root)}",),
        children=children,
        platform=AMD64,
    )


BROKEN = image(MANIFEST, child(MANIFEST, False, len(MANIFEST) + len(CONFIG)))
WHOLE = image(MANIFEST, child(MANIFEST, True, 100_000))


class Stream:
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, least: int = 1) -> bytes:
        data, self.data = self.data, b""
        return data

    def close(self) -> None:
        pass


class FakeDocker:
    """`IEngine` as far as a repair needs it; `mended_by` makes the image whole."""

    def __init__(self, now: EngineImage, then: EngineImage, mended_by: str = "") -> None:
        self.now, self.then, self.mended_by = now, then, mended_by
        self.requests: list[tuple[str, str, Mapping[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.build_error = ""
        self.built = "sha256:" + "b" * 64
        self.built_tags: list[str] = []

    async def inspect(self, name: str) -> EngineImage:
        return self.now

    async def request(self, method: str, path: str, *, params: Any = None, data: Any = None, **more: Any) -> Any:
        self.requests.append((method, path, params or {}))
        if path == "/build":
            self.bodies.append(data)
            answer = [{"id": "moby.buildkit.trace", "aux": "AAAA"}, {"id": "moby.image.id", "aux": {"ID": self.built}}]
            if self.build_error:
                answer = [{"errorDetail": {"message": self.build_error}, "error": self.build_error}]
        elif path == "/images/load":
            assert IBodyProducer.providedBy(data)
            transport = StringTransport()
            await data.startProducing(transport)
            assert len(transport.value()) == data.length
            self.bodies.append(transport.value())
            answer = [{"stream": "Loaded image: whatever\n"}]
        elif method == "GET":
            answer = [{"RepoTags": self.built_tags}]
        else:
            answer = []
        if path.endswith(self.mended_by or "nothing"):
            self.now = self.then
        return b"".join(json.dumps(one).encode() for one in answer)

    def body(self, response: bytes, what: str) -> IByteStream:
        return Stream(response)

    def asked(self, path: str) -> int:
        return sum(path in asked for _, asked, _ in self.requests)


class Registries:
    def __init__(self) -> None:
        self.documents = {Digest.of(data): data for data in (MANIFEST, INDEX)}
        self.blobs = {Digest.of(data): data for data in (CONFIG, *LAYERS)}
        self.fetched: list[Digest] = []
        self.shown: list[Credentials | None] = []
        self.error: K3dregError | None = None

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        self.shown.append(credentials)
        if self.error is not None:
            raise self.error
        assert reference.digest is not None
        data = self.documents[reference.digest]
        return Descriptor("", reference.digest, len(data)), data

    async def blob(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        self.fetched.append(digest)
        assert repository == APP
        assert size == len(self.blobs[digest])
        return MemoryBlob(digest, self.blobs[digest])

    fetch = blob


class NoCredentials:
    async def credentials(self, registry: str) -> Credentials | None:
        return None

    def refused(self, registry: str) -> None:
        pass

    async def registry_auth(self, registry: str) -> str:
        return ""


class Holds:
    """A source that knows of single blobs whether the engine has them."""

    name = "content"

    def __init__(self, *held: bytes) -> None:
        self.held = {Digest.of(data): data for data in held}

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        if digest not in self.held:
            raise BlobUnknown("not held")
        return MemoryBlob(digest, self.held[digest])


class RepairTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.origin = Registries()
        self.store = self.successResultOf(
            Deferred.fromCoroutine(open_store(Path(self.mktemp()), InlineWorkers(), 1 << 30, self.clock))
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.store.close()))

    def repair(self, docker: FakeDocker, *probes: Any) -> Repair:
        self.docker = docker
        engine: Any = docker
        return Repair(engine, self.origin, NoCredentials(), probes, self.store, self.clock)

    def ensured(self, repair: Repair, now: EngineImage, shown: Credentials | None = None) -> EngineImage:
        return self.successResultOf(Deferred.fromCoroutine(repair.ensure(now, TAG, shown, Trace())))

    def refused(self, repair: Repair, now: EngineImage, shown: Credentials | None = None) -> K3dregError:
        asked = Deferred.fromCoroutine(repair.mend(now, TAG, shown, Trace()))
        error: K3dregError = self.failureResultOf(asked, K3dregError).value
        return error

    def loaded(self) -> dict[str, bytes]:
        """The archive that was loaded."""
        with tarfile.open(fileobj=io.BytesIO(self.docker.bodies[-1])) as archive:
            return {m.name: file.read() for m in archive if (file := archive.extractfile(m))}

    def test_a_whole_image_costs_nothing(self) -> None:
        repair = self.repair(FakeDocker(WHOLE, WHOLE))
        self.assertIs(self.ensured(repair, WHOLE), WHOLE)
        self.assertEqual(self.docker.requests, [])

    def test_a_stop_ends_a_repair_under_way(self) -> None:
        repair = self.repair(FakeDocker(BROKEN, WHOLE))
        never: Deferred[bytes] = Deferred()
        self.docker.request = lambda *_, **__: never  # type: ignore[assignment,method-assign]
        waiting = Deferred.fromCoroutine(repair.ensure(BROKEN, TAG, None, Trace()))
        repair.shutdown()
        self.failureResultOf(waiting, CancelledError)

    def test_a_build_from_the_digest_mends_it_and_what_was_built_is_removed(self) -> None:
        repair = self.repair(FakeDocker(BROKEN, WHOLE, "/build"))
        self.assertEqual(self.ensured(repair, BROKEN), WHOLE)
        self.assertEqual(self.docker.bodies, [f"FROM 127.0.0.1:5900/team/app@{Digest.of(MANIFEST)}\n".encode()])
        self.assertEqual(self.docker.requests[0][2], {"version": "2"})
        self.assertIn(("DELETE", f"/images/{self.docker.built}", {}), self.docker.requests)
        self.assertEqual(self.docker.asked("/images/load"), 0)

    def test_what_a_build_made_and_somebody_has_named_is_left_alone(self) -> None:
        docker = FakeDocker(BROKEN, WHOLE, "/build")
        docker.built_tags = ["mine:1"]
        self.ensured(self.repair(docker), BROKEN)
        self.assertNotIn("DELETE", [method for method, _, _ in docker.requests])

    def test_of_an_index_the_broken_platform_is_built(self) -> None:
        whole_arm = child(b"arm64's", True, 5000, ARM64)
        broken = image(INDEX, whole_arm, child(MANIFEST, False, len(MANIFEST) + 10, AMD64))
        repair = self.repair(FakeDocker(broken, image(INDEX, whole_arm, child(MANIFEST, True, 9000, AMD64)), "/build"))
        self.ensured(repair, broken)
        self.assertEqual(self.docker.requests[0][2], {"version": "2", "platform": "linux/amd64"})

    def test_where_a_build_is_of_no_use_the_blobs_are_fetched_and_loaded(self) -> None:
        docker = FakeDocker(BROKEN, WHOLE, "/images/load")
        docker.build_error = "no active sessions"
        self.assertEqual(self.ensured(self.repair(docker), BROKEN), WHOLE)
        self.assertEqual(set(self.origin.fetched), {Digest.of(data) for data in (CONFIG, *LAYERS)})
        loaded = self.loaded()
        index = json.loads(loaded.pop("index.json"))
        loaded.pop("oci-layout")
        self.assertEqual(set(loaded.values()), {CONFIG, *LAYERS})
        [root] = index["manifests"]
        self.assertEqual(root["digest"], str(Digest.of(MANIFEST)))
        name = root["annotations"]["io.containerd.image.name"]
        self.assertTrue(name.startswith("docker.io/library/k3dreg-repair:"))
        # The user's own tags are not named, and the one that was is gone again.
        self.assertIn(("DELETE", f"/images/{name}", {}), docker.requests)

    def test_only_what_is_missing_is_fetched_where_that_can_be_told(self) -> None:
        docker = FakeDocker(BROKEN, WHOLE, "/images/load")
        docker.build_error = "no active sessions"
        self.ensured(self.repair(docker, Holds(MANIFEST, CONFIG, LAYERS[1])), BROKEN)
        self.assertEqual(self.origin.fetched, [Digest.of(LAYERS[0])])
        self.assertEqual(self.origin.shown, [])  # the manifest is read from the engine: a registry may forget it

    def test_nothing_is_mended_where_only_layers_that_may_not_be_distributed_are_absent(self) -> None:
        docker = FakeDocker(BROKEN, BROKEN)
        self.assertIs(self.ensured(self.repair(docker, Holds(MANIFEST, CONFIG, *LAYERS)), BROKEN), BROKEN)
        self.assertEqual(docker.requests, [])

    def test_an_engine_that_does_not_tell_is_not_asked_to_build(self) -> None:
        old = image()
        repair = self.repair(FakeDocker(old, old))
        self.assertIs(self.ensured(repair, old), old)
        self.successResultOf(Deferred.fromCoroutine(repair.mend(old, TAG, None, Trace())))
        self.assertEqual(self.docker.asked("/build"), 0)
        self.assertEqual(self.docker.asked("/images/load"), 1)
        # That somebody comes again says that it was of no use, and then there is an end.
        for _ in range(3):
            self.assertIsInstance(self.refused(repair, old), ImageIncomplete)
        self.assertEqual(self.docker.asked("/images/load"), 1)

    def test_of_an_index_such_an_engine_gets_its_own_platform(self) -> None:
        old = image(INDEX)
        self.successResultOf(Deferred.fromCoroutine(self.repair(FakeDocker(old, old)).mend(old, TAG, None, Trace())))
        self.assertEqual(set(self.origin.fetched), {Digest.of(data) for data in (CONFIG, *LAYERS)})

    def test_what_cannot_be_mended_is_explained_and_not_tried_again_for_minutes(self) -> None:
        docker = FakeDocker(BROKEN, BROKEN)
        docker.build_error = "connection refused"
        self.origin.error = UpstreamFailed("127.0.0.1:5900 cannot be reached")
        repair = self.repair(docker)
        for _ in range(3):
            error = self.refused(repair, BROKEN)
            self.assertIsInstance(error, ImageIncomplete)
            self.assertIn("cannot be reached", str(error))
            self.assertEqual(error.advice, ADVICE)
        self.assertEqual(docker.asked("/build"), 1)
        self.clock.advance(301)
        self.refused(repair, BROKEN)
        self.assertEqual(docker.asked("/build"), 2)
        for words in ("moby#49473", "containerd#8973", "ctr -n moby content fetch", "--unpack=false"):
            self.assertIn(words, ADVICE)

    def test_a_private_registry_asks_the_client_and_then_takes_its_credentials(self) -> None:
        docker = FakeDocker(BROKEN, WHOLE, "/images/load")
        docker.build_error = "no active sessions"
        self.origin.error = AuthenticationRequired("the registry wants credentials")
        repair = self.repair(docker)
        error = self.refused(repair, BROKEN)
        assert isinstance(error, AuthenticationRequired)
        self.assertTrue(error.challenge)
        self.origin.error = None
        shown = Credentials("user", "password")
        self.assertEqual(self.ensured(repair, BROKEN, shown), WHOLE)
        self.assertEqual(self.origin.shown[-1], shown)

    def test_wrong_credentials_end_it(self) -> None:
        docker = FakeDocker(BROKEN, BROKEN)
        docker.build_error = "no active sessions"
        self.origin.error = AuthenticationRequired("wrong", challenge=False)
        self.assertIsInstance(self.refused(self.repair(docker), BROKEN, Credentials("user", "x")), ImageIncomplete)

    def test_an_image_with_another_platform_that_is_whole_is_served_if_it_cannot_be_mended(self) -> None:
        broken = image(INDEX, child(b"arm64's", True, 5000, ARM64), child(MANIFEST, False, len(MANIFEST) + 10, AMD64))
        docker = FakeDocker(broken, broken)
        docker.build_error = "no"
        self.origin.error = UpstreamFailed("no")
        self.assertIs(self.ensured(self.repair(docker), broken), broken)

    def test_other_names_of_the_image_are_tried_too(self) -> None:
        docker = FakeDocker(BROKEN, BROKEN)
        docker.build_error = "no"
        self.origin.error = UpstreamFailed("no")
        named = evolve(BROKEN, repo_digests=("nginx@sha256:0", *BROKEN.repo_digests, "ghcr.io/x/y@sha256:0"))
        self.refused(self.repair(docker), named)
        from_lines = [body.decode().split("@")[0] for body in docker.bodies]
        self.assertEqual(
            from_lines, ["FROM 127.0.0.1:5900/team/app", "FROM docker.io/library/nginx", "FROM ghcr.io/x/y"]
        )

    def test_the_classic_store_is_not_mended(self) -> None:
        classic = evolve(image(), store=ImageStore.CLASSIC)
        self.assertIsInstance(self.refused(self.repair(FakeDocker(classic, classic)), classic), ImageIncomplete)
        self.assertEqual(self.docker.requests, [])

    def test_platforms_that_were_never_pulled_are_not_broken(self) -> None:
        whole = child(MANIFEST, True, 9000, AMD64)
        manifest_only = child(b"arm64's", False, len(b"arm64's"), ARM64)
        self.assertEqual(broken_children(image(INDEX, whole, manifest_only)), [])
        self.assertEqual(
            broken_children(image(INDEX, evolve(whole, available=False, held=0), manifest_only)), [manifest_only]
        )
        absent = evolve(whole, available=False, held=0)
        self.assertEqual(broken_children(image(INDEX, absent, manifest_only)), [manifest_only])
        attestation = evolve(manifest_only, kind="attestation", held=99)
        self.assertEqual(broken_children(image(INDEX, whole, attestation)), [])
