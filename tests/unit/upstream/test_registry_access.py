"""What a tag means in its registry: one HEAD, with the credentials of a pull."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci import media_types
from k3dreg.oci.errors import AuthenticationRequired, K3dregError, ManifestUnknown, RateLimited, UpstreamFailed
from k3dreg.oci.reference import Reference, Repository
from k3dreg.streaming.quiet_pool import quiet_pool
from k3dreg.upstream.registry_access import RegistryAccess
from k3dreg.upstream.registry_requests import Requests, make_origin_agent
from tests.fakes.upstream import FakeUpstream

LOGIN = Credentials("user", "Pa55-w0rd")


class DigestTests(TestCase):
    timeout = 6

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.upstream = FakeUpstream()
        self.upstream.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.upstream.stop()))
        pool = quiet_pool(reactor, persistent=False)
        self.registries = RegistryAccess(Requests(make_origin_agent(reactor, pool=pool), Clock()), Clock())
        self.reference = Reference.parse(Repository.parse("team/app", self.upstream.host), "1")

    async def failure(self, credentials: Credentials | None = None) -> K3dregError:
        try:
            await self.registries.digest(self.reference, credentials)
        except K3dregError as error:
            return error
        raise AssertionError("there was no error")

    async def test_it_is_one_head_for_every_type_of_manifest(self) -> None:
        told = self.upstream.add_manifest(media_types.OCI_INDEX, b'{"manifests":[]}', "1")
        self.assertEqual(await self.registries.digest(self.reference, None), told)
        self.assertEqual(
            [(seen.method, seen.path) for seen in self.upstream.seen], [("HEAD", "/v2/team/app/manifests/1")]
        )

    async def test_a_password_and_a_token_are_shown_as_for_a_pull(self) -> None:
        told = self.upstream.add_manifest(media_types.OCI_MANIFEST, b"{}", "1")
        for kind in ("basic", "bearer"):
            self.upstream.auth = kind
            self.assertEqual(await self.registries.digest(self.reference, LOGIN), told)
            error = await self.failure()
            self.assertIsInstance(error, AuthenticationRequired)
            self.assertNotIn(LOGIN.password, str(error))

    async def test_refusals_are_told_apart(self) -> None:
        self.assertIsInstance(await self.failure(), ManifestUnknown)
        for status, kind in ((429, RateLimited), (500, UpstreamFailed), (403, K3dregError)):
            self.upstream.status = status
            error = await self.failure()
            self.assertIsInstance(error, kind)
            self.assertIn(str(status), str(error))

    async def test_a_token_server_that_limits_requests_limits_them_for_the_registry(self) -> None:
        self.upstream.auth = "bearer"
        other = FakeUpstream(status=429)
        other.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(other.stop()))
        self.upstream.realm = f"http://{other.host}/token"
        self.assertIsInstance(await self.failure(), RateLimited)

    async def test_a_registry_that_tells_no_digest_is_not_guessed_at(self) -> None:
        self.upstream.add_manifest(media_types.OCI_MANIFEST, b"{}", "1")

        async def ask(*arguments: Any, **more: Any) -> Any:
            answer = await get(*arguments, **more)
            answer.headers.removeHeader("docker-content-digest")
            return answer

        get = self.registries._requests.get
        self.patch(self.registries._requests, "get", ask)
        self.assertIn("does not say which digest", str(await self.failure()))
