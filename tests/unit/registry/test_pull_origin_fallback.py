"""What Docker cannot give comes from the image's own registry, if that is wanted."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    Denied,
    EngineUnavailable,
    ImageIncomplete,
    K3dregError,
    ManifestUnknown,
    NotAnImage,
    UpstreamFailed,
)
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.upstream.origin_fallback import OriginFallback
from tests.fakes.pulling import pull_of

LAYER = b"layer"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": {"mediaType": media_types.OCI_CONFIG, "digest": str(Digest.of(b"{}")), "size": 2},
        "layers": [{"mediaType": media_types.OCI_LAYER, "digest": str(Digest.of(LAYER)), "size": len(LAYER)}],
    }
).encode()
APP = Repository("ghcr.io", "team/app")
BY_DIGEST = Reference(APP, Digest.of(MANIFEST))
BY_TAG = Reference.parse(APP, "1")
SHOWN = BasicAuth("pod", "secret")
HOSTS = Credentials("host", "secret")


class Docker:
    """Refuses everything with `error`."""

    def __init__(self) -> None:
        self.error: K3dregError = ManifestUnknown("Docker says no", advice="do something")

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        raise self.error

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        raise self.error


class Registries:
    """Has one image, for those who show what is `wanted`."""

    def __init__(self) -> None:
        self.wanted: Credentials | None = None
        self.error: K3dregError | None = None
        self.asked: list[tuple[str, Credentials | None, int | None]] = []
        self.gate: Deferred[None] | None = None
        self.tag = ""

    def _check(self, what: str, credentials: Credentials | None, size: int | None = None) -> None:
        self.asked.append((what, credentials, size))
        if self.error is not None:
            raise self.error
        if self.wanted is not None and credentials != self.wanted:
            raise AuthenticationRequired("the registry wants credentials", challenge=credentials is None)

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        self._check(str(reference), credentials)
        if self.gate is not None:
            await self.gate
        if str(reference.target) not in (self.tag, str(Digest.of(MANIFEST))):
            raise ManifestUnknown("the registry says no")
        return Descriptor(media_types.OCI_MANIFEST, Digest.of(MANIFEST), len(MANIFEST)), MANIFEST

    async def blob(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        self._check(f"{repository}@{digest}", credentials, size)
        if digest != Digest.of(LAYER):
            raise BlobUnknown("the registry says no")
        return MemoryBlob(digest, LAYER)

    fetch = blob


class Host:
    found: Credentials | None = None
    not_taken: tuple[str, ...] = ()

    async def credentials(self, registry: str) -> Credentials | None:
        assert registry == "ghcr.io"
        return self.found

    async def registry_auth(self, registry: str) -> str:
        raise NotImplementedError

    def refused(self, registry: str) -> None:
        self.not_taken += (registry,)


class FallingBackTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.docker, self.registries, self.host, self.clock = Docker(), Registries(), Host(), Clock()
        fallback = OriginFallback(
            self.registries, self.host, self.clock, lambda registry: registry in (None, "127.0.0.1:5000")
        )
        self.registry = pull_of(self.docker, OwnNames(), fallback=fallback)
        self.trace = Trace()

    def manifest(self, reference: Reference = BY_DIGEST, shown: BasicAuth | None = None) -> bytes:
        async def read() -> bytes:
            served = await self.registry.manifest(reference, shown, self.trace)
            return await (await served.open()).read()

        return self.successResultOf(Deferred.fromCoroutine(read()))

    def refusal(self, reference: Reference = BY_DIGEST, shown: BasicAuth | None = None) -> Exception:
        asked = Deferred.fromCoroutine(self.registry.manifest(reference, shown, self.trace))
        error: Exception = self.failureResultOf(asked, K3dregError).value
        return error

    def blob(self, digest: Digest, repository: Repository = APP) -> Deferred[IBlob]:
        return Deferred.fromCoroutine(self.registry.blob(repository, digest, self.trace))

    def test_a_manifest_that_docker_cannot_give_comes_from_its_registry(self) -> None:
        self.assertEqual(self.manifest(), MANIFEST)
        self.assertEqual(self.trace.source, "registry")

    def test_unless_that_is_not_wanted_any_more(self) -> None:
        self.manifest()
        asked = list(self.registries.asked)
        self.registry.enable_origin_fallback(False)
        self.refusal()
        self.failureResultOf(self.blob(Digest.of(LAYER)), K3dregError)
        self.assertEqual(self.registries.asked, asked)

    def test_so_does_a_blob_of_it_whose_size_is_known_then(self) -> None:
        self.manifest()
        blob = self.successResultOf(self.blob(Digest.of(LAYER)))
        self.assertEqual(blob.size, len(LAYER))
        self.assertEqual(self.registries.asked[-1], (f"{APP}@{Digest.of(LAYER)}", None, len(LAYER)))

    def test_a_single_blob_that_docker_has_lost_is_asked_for_in_its_repository(self) -> None:
        self.docker.error = ImageIncomplete("Docker has lost it")
        self.host.found = HOSTS
        self.successResultOf(self.blob(Digest.of(LAYER)))
        self.assertEqual(self.registries.asked, [(f"{APP}@{Digest.of(LAYER)}", HOSTS, None)])

    def test_what_a_tag_means_is_docker_s_to_say(self) -> None:
        self.assertIs(self.refusal(BY_TAG), self.docker.error)
        self.assertEqual(self.registries.asked, [])

    def test_what_is_no_image_to_docker_comes_from_its_registry_by_tag_too(self) -> None:
        self.docker.error = NotAnImage("unsupported media type application/vnd.cncf.helm.config.v1+json")
        self.registries.tag = "1"
        self.assertEqual(self.manifest(BY_TAG), MANIFEST)
        self.registries.error = UpstreamFailed("it cannot be reached")
        self.assertIs(self.refusal(BY_TAG), self.docker.error)

    def test_an_engine_that_is_down_is_no_reason_to_ask_elsewhere(self) -> None:
        self.docker.error = EngineUnavailable("down")
        self.assertIs(self.refusal(), self.docker.error)
        self.assertEqual(self.registries.asked, [])

    def test_when_both_say_no_docker_s_no_counts(self) -> None:
        other = Reference(APP, Digest.of(b"other"))
        self.assertIs(self.refusal(other), self.docker.error)
        self.registries.error = UpstreamFailed("it cannot be reached")
        self.assertIs(self.refusal(Reference(APP, Digest.of(b"another"))), self.docker.error)

    def test_the_client_s_credentials_come_before_the_host_s_and_serve_its_blobs(self) -> None:
        self.registries.wanted, self.host.found = Credentials.of(SHOWN), HOSTS
        self.manifest(shown=SHOWN)
        self.successResultOf(self.blob(Digest.of(LAYER)))
        self.assertEqual({credentials for _, credentials, _ in self.registries.asked}, {Credentials.of(SHOWN)})

    def test_one_client_s_manifest_is_not_got_with_another_s_credentials(self) -> None:
        self.registries.wanted = Credentials.of(SHOWN)
        self.manifest(shown=SHOWN)
        refusal = self.refusal()
        assert isinstance(refusal, AuthenticationRequired)
        self.assertTrue(refusal.challenge)

    def test_the_host_s_are_used_when_the_client_shows_none(self) -> None:
        self.registries.wanted = self.host.found = HOSTS
        self.assertEqual(self.manifest(), MANIFEST)

    def test_where_the_host_s_are_not_taken_the_client_is_asked_for_better_ones(self) -> None:
        self.registries.wanted, self.host.found = Credentials.of(SHOWN), HOSTS
        refusal = self.refusal()
        assert isinstance(refusal, AuthenticationRequired)
        self.assertTrue(refusal.challenge)
        self.assertEqual(self.host.not_taken, ("ghcr.io",))
        self.assertEqual(self.manifest(shown=SHOWN), MANIFEST)

    def test_who_is_denied_and_showed_nothing_is_asked_for_credentials(self) -> None:
        self.registries.error = Denied("unauthenticated requests do not have permission")
        refusal = self.refusal()
        assert isinstance(refusal, AuthenticationRequired)
        self.assertTrue(refusal.challenge)
        self.assertIs(self.refusal(shown=SHOWN), self.docker.error)

    def test_many_who_want_a_manifest_at_once_ask_its_registry_once(self) -> None:
        self.registries.gate = gate = Deferred[None]()
        asked = [Deferred.fromCoroutine(self.registry.manifest(BY_DIGEST, None, Trace())) for _ in range(5)]
        asked[0].cancel()
        self.failureResultOf(asked[0])
        gate.callback(None)
        self.assertEqual({self.successResultOf(each).descriptor.digest for each in asked[1:]}, {BY_DIGEST.digest})
        self.assertEqual(len(self.registries.asked), 1)

    def test_a_refusal_is_not_asked_for_again_for_seconds_by_the_same_caller(self) -> None:
        other = Reference(APP, Digest.of(b"other"))
        for _ in range(3):
            self.refusal(other)
            self.failureResultOf(self.blob(Digest.of(b"other")))
        self.assertEqual(len(self.registries.asked), 2)
        self.refusal(other, SHOWN)
        self.assertEqual(len(self.registries.asked), 3)
        self.clock.advance(6)
        self.refusal(other)
        self.assertEqual(len(self.registries.asked), 4)

    def test_k3dreg_does_not_ask_itself(self) -> None:
        for registry in (None, "127.0.0.1:5000"):
            own = Repository(registry, "team/app")
            self.assertIs(self.refusal(Reference(own, Digest.of(MANIFEST))), self.docker.error)
            self.failureResultOf(self.blob(Digest.of(LAYER), own), ManifestUnknown)
        self.assertEqual(self.registries.asked, [])
