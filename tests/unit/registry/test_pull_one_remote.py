"""One registry's images alone: which names are whose, and what a client that pushes is told."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    EngineUnavailable,
    K3dregError,
    ManifestUnknown,
    UpstreamFailed,
)
from k3dreg.oci.media_types import OCI_MANIFEST
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.one_remote import OneRemote
from k3dreg.registry.own_names import OwnNames
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from tests.fakes.pulling import pull_of

CONTENT = MemoryBlob(Digest.of(b"{}"), b"{}", OCI_MANIFEST)
SHOWN = BasicAuth("pod", "secret")


@define
class Behind:
    """Has what `there` names; `errors` are for others.  Keeps what it is asked, with the credentials shown."""

    there: set[str] = field(factory=set)
    errors: dict[str, K3dregError] = field(factory=dict)
    asked: list[tuple[str, BasicAuth | None]] = field(factory=list)

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        self.asked.append((str(reference), authorization))
        if str(reference) not in self.there:
            raise self.errors.get(str(reference)) or ManifestUnknown(f"Docker has no {reference}")
        return ServedManifest(Descriptor(OCI_MANIFEST, CONTENT.digest, CONTENT.size), CONTENT.itself)

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        raise BlobUnknown("Docker has no blob")


@define
class Origin:
    """The registries themselves, which have the blobs that `behind.there` names."""

    behind: Behind

    async def manifest(self, reference: Reference, shown: Credentials | None, trace: Trace) -> ServedManifest:
        raise NotImplementedError

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        self.behind.asked.append((str(repository), None))
        if str(repository) not in self.behind.there:
            raise self.behind.errors.get(str(repository)) or BlobUnknown(f"no {repository}")
        return CONTENT


def reference(path: str, registry: str | None = None) -> Reference:
    return Reference.parse(Repository.parse(path, registry), "1")


class OneRemoteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.behind = Behind()
        self.pushed: set[Repository] = set()
        names = OwnNames(["k3d-reg:5000"])
        remote = OneRemote("docker.io", names, self.pushed.__contains__)
        self.registry = pull_of(self.behind, names, remote=remote, fallback=Origin(self.behind))

    def manifest(self, path: str, registry: str | None = None) -> Deferred[ServedManifest]:
        return Deferred.fromCoroutine(self.registry.manifest(reference(path, registry), SHOWN, Trace()))

    def blob(self, path: str, registry: str | None = None) -> Deferred[IBlob]:
        return Deferred.fromCoroutine(self.registry.blob(Repository.parse(path, registry), CONTENT.digest, Trace()))

    def test_its_images_by_its_name_are_had_as_ever(self) -> None:
        self.behind.there = {"docker.io/library/nginx:1", "docker.io/library/nginx"}
        self.successResultOf(self.manifest("nginx", "registry-1.docker.io"))
        self.successResultOf(self.blob("nginx", "docker.io"))
        self.assertEqual(self.behind.asked, [("docker.io/library/nginx:1", SHOWN), ("docker.io/library/nginx", None)])

    def test_another_registrys_are_404_and_nobody_is_asked(self) -> None:
        for asked in (self.manifest("team/app", "ghcr.io"), self.blob("team/app", "ghcr.io")):
            error = self.failureResultOf(asked, ManifestUnknown, BlobUnknown).value
            self.assertIn("images of docker.io only, and ghcr.io/team/app is another", str(error))
            self.assertIn("REGISTRY_PROXY_REMOTEURL", error.advice)
        self.assertEqual(self.behind.asked, [])

    def test_another_registry_in_the_path_is_another_registry(self) -> None:
        self.behind.there = {"ghcr.io/team/app:1", "ghcr.io/team/app"}
        for registry in (None, "k3d-reg:5000"):
            for asked in (self.manifest("ghcr.io/team/app", registry), self.blob("ghcr.io/team/app", registry)):
                self.failureResultOf(asked, ManifestUnknown, BlobUnknown)
        self.assertEqual(self.behind.asked, [])

    def test_the_remote_in_the_path_is_the_remote(self) -> None:
        self.behind.there = {"docker.io/library/redis:1"}
        self.failureResultOf(self.manifest("docker.io/library/nginx"), ManifestUnknown)
        self.successResultOf(self.manifest("docker.io/library/redis"))
        self.assertNotIn("docker.io/docker.io", str(self.behind.asked))

    def test_who_names_no_registry_means_our_own_first_and_then_its(self) -> None:
        self.behind.there = {"nginx:1", "docker.io/library/redis:1", "docker.io/library/redis"}
        self.successResultOf(self.manifest("nginx"))
        self.assertEqual(self.behind.asked, [("nginx:1", SHOWN)])
        self.successResultOf(self.manifest("redis"))
        self.successResultOf(self.blob("redis"))

    def test_what_is_shown_to_us_is_not_shown_to_it(self) -> None:
        self.behind.there = {"docker.io/library/redis:1"}
        self.successResultOf(self.manifest("redis"))
        self.assertEqual(self.behind.asked[-1], ("docker.io/library/redis:1", None))

    def test_a_client_that_pushes_learns_that_a_name_is_free_whatever_the_remote_says(self) -> None:
        for error in (ManifestUnknown("none"), AuthenticationRequired("denied"), UpstreamFailed("no route")):
            self.behind.errors = {"docker.io/team/app:1": error, "docker.io/team/app": error}
            told = self.failureResultOf(self.manifest("team/app"), ManifestUnknown)
            self.assertIn(str(error), str(told.value))
            self.failureResultOf(self.blob("team/app"), BlobUnknown)

    def test_what_was_pushed_or_is_asked_for_by_our_own_name_is_never_looked_for_there(self) -> None:
        self.pushed.add(Repository(None, "team/app"))
        self.behind.there = {"docker.io/team/app:1", "docker.io/team/other:1"}
        self.failureResultOf(self.manifest("team/app"), ManifestUnknown)
        self.failureResultOf(self.blob("team/app"), BlobUnknown)
        self.failureResultOf(self.manifest("team/other", "k3d-reg:5000"), ManifestUnknown)
        self.assertNotIn("docker.io", str(self.behind.asked))

    def test_an_engine_that_is_away_is_no_reason_to_look_for_the_remotes(self) -> None:
        away = EngineUnavailable("Docker is away")
        self.behind.errors = {"nginx:1": away, "docker.io/library/nginx:1": away}
        self.failureResultOf(self.manifest("nginx"), ManifestUnknown)
        self.assertEqual(self.behind.asked, [("nginx:1", SHOWN)])
        self.failureResultOf(self.manifest("nginx", "docker.io"), EngineUnavailable)
