"""No answer to a pull begins later than its client waits."""

from __future__ import annotations

import json

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.digest import Digest
from k3dreg.oci.media_types import OCI_MANIFEST
from k3dreg.oci.reference import Reference
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.web.site import make_site
from tests.fakes.registry import FakeRegistry, WholeBlob
from tests.fakes.wire import Response, WireTestCase, request

DATA = b"{}"
MANIFEST = "/v2/library/app/manifests/1?ns=docker.io"
BLOB = f"/v2/library/app/blobs/{Digest.of(DATA)}?ns=docker.io"
PATIENT = "containerd/1.7.24"


class SlowRegistry(FakeRegistry):
    """Each call, and each opening of a manifest, ends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.called: Deferred[None] = Deferred()
        self.cancelled = False
        self.known: Deferred[None] = Deferred()
        self.opening: Deferred[None] = Deferred()
        self.readable: Deferred[None] = Deferred()
        self.before = self._wait

    async def _wait(self, trace: Trace) -> None:
        self.called.callback(None)
        try:
            await self.known
        except CancelledError:
            self.cancelled = True
            raise

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        served = await super().manifest(reference, authorization, trace)

        async def opened() -> IBlob:
            self.opening.callback(None)
            await self.readable
            return await served.open()

        return ServedManifest(served.descriptor, opened)


class DeadlineTests(WireTestCase):
    async def begin(self, method: str, path: str, **headers: str) -> None:
        self.clock, self.registry = Clock(), SlowRegistry()
        self.registry.tag("docker.io/library/app:1", OCI_MANIFEST, WholeBlob(DATA))
        self.registry.put(WholeBlob(DATA))
        self.wire = await self.connect(self.listen(make_site(self.registry, self.clock)))
        self.wire.transport.write(request(method, path, **headers))
        await self.registry.called
        await self.turn()  # `called` fires in the middle of the request's work

    async def not_yet(self, method: str) -> Response:
        response = await self.wire.response(with_body=method != "HEAD")
        self.assertEqual((response.status, response.headers["retry-after"]), (503, "10"))
        return response

    async def test_what_comes_in_time_is_passed_on(self) -> None:
        await self.begin("GET", MANIFEST)
        self.clock.advance(17)
        self.registry.known.callback(None)
        await self.registry.opening
        self.registry.readable.callback(None)
        response = await self.wire.response()
        self.assertEqual((response.status, response.body), (200, DATA))

    async def test_what_is_not_known_in_time_is_to_be_asked_for_again(self) -> None:
        for method, path in (("HEAD", MANIFEST), ("GET", MANIFEST), ("HEAD", BLOB), ("GET", BLOB)):
            await self.begin(method, path)
            self.clock.advance(17.9)
            await self.turn()
            self.assertEqual(self.wire.received, b"")
            self.clock.advance(0.2)
            response = await self.not_yet(method)
            if method == "GET":
                self.assertIn("longer than 18 s", json.loads(response.body)["errors"][0]["message"])
            self.assertTrue(self.registry.cancelled)

    async def test_a_manifest_and_its_bytes_have_the_time_together(self) -> None:
        await self.begin("GET", MANIFEST)
        self.clock.advance(10)
        self.registry.known.callback(None)
        await self.registry.opening
        await self.turn()
        self.clock.advance(7.9)
        await self.turn()
        self.assertEqual(self.wire.received, b"")
        self.clock.advance(0.2)
        await self.not_yet("GET")

    async def test_a_client_that_waits_for_long_is_made_to_wait(self) -> None:
        await self.begin("GET", BLOB, User_Agent=PATIENT)
        self.clock.advance(200)
        self.registry.known.callback(None)
        self.assertEqual((await self.wire.response()).body, DATA)

    async def test_the_connection_takes_the_next_request(self) -> None:
        await self.begin("HEAD", MANIFEST)
        self.clock.advance(18.1)
        await self.not_yet("HEAD")
        self.assertEqual((await self.wire.ask("GET", "/v2/")).status, 200)
