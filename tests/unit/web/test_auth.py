"""Who may read and who may write, on the wire."""

from __future__ import annotations

import base64
import json

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.errors import AuthenticationRequired, NotYet
from k3dreg.oci.media_types import OCI_INDEX
from k3dreg.reporting.trace import Trace
from k3dreg.status.operations import Operations
from k3dreg.web.auth import Access
from k3dreg.web.site import make_site
from tests.fakes.registry import FakeRegistry, WholeBlob
from tests.fakes.wire import Response, Wire, WireTestCase, request
from tests.unit.status.test_operations import FakeMonitoring
from tests.unit.web.test_push_api import UPLOADS, FakeUploads

NGINX = "/v2/library/nginx/manifests/1?ns=docker.io"


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


OURS = basic("anna", "secret")
PODS = basic("pod", "pull-secret")


async def wants_credentials(trace: Trace) -> None:
    raise AuthenticationRequired("denied")


@define
class OneUser:
    """Knows anna."""

    asked: list[BasicAuth] = field(factory=list)
    clients: list[str] = field(factory=list)
    gate: Deferred[None] | None = None
    busy: bool = False

    async def knows(self, shown: BasicAuth, client: str = "") -> bool:
        self.asked.append(shown)
        self.clients.append(client)
        if self.busy:
            raise NotYet("too many passwords are being checked", after=1)
        if self.gate is not None:
            await self.gate
        return shown == BasicAuth("anna", "secret")


class AccessCase(WireTestCase):
    anonymous_pull = False

    def setUp(self) -> None:
        super().setUp()
        self.registry = FakeRegistry()
        self.manifest = self.registry.tag("docker.io/library/nginx:1", OCI_INDEX, WholeBlob(b"{}"))
        self.users = OneUser()
        self.uploads = FakeUploads()
        self.monitoring = FakeMonitoring()
        clock = Clock()
        self.access = Access(self.users, anonymous_pull=self.anonymous_pull, own_names={"anna", "former"})
        site = make_site(
            self.registry,
            clock,
            uploads=self.uploads,
            operations=Operations(self.monitoring, clock),
            observer=self.monitoring,
            access=self.access,
        )
        self.port = self.listen(site)

    async def ask(self, method: str, path: str, authorization: str = "", **headers: str) -> Response:
        wire: Wire = await self.connect(self.port)
        if authorization:
            headers["Authorization"] = authorization
        return await wire.ask(method, path, **headers)

    def assert_refused(self, answer: Response, *, asked: bool = True) -> None:
        self.assertEqual(answer.status, 401)
        challenge = 'Basic realm="k3dreg", charset="UTF-8"' if asked else None
        self.assertEqual(answer.headers.get("www-authenticate"), challenge)
        if answer.body:
            self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "UNAUTHORIZED")


class LoginForEverythingTests(AccessCase):
    async def test_nothing_but_the_health_is_to_be_had_without_a_password(self) -> None:
        for path in ("/", "/v2/", NGINX, "/metrics", "/events", "/status.css", "/nowhere"):
            for shown in ("", PODS, basic("anna", "wrong")):
                # A node that is asked again would show the same again.
                asked = path != NGINX or not shown
                self.assert_refused(await self.ask("GET", path, shown, Accept="text/html"), asked=asked)
        for path in ("/healthz", "/readyz"):
            self.assertEqual((await self.ask("GET", path)).status, 200)
        self.assertEqual(self.registry.authorizations, [])

    async def test_with_the_password_everything_is(self) -> None:
        for path in ("/", "/v2/", NGINX, "/metrics", "/status.css"):
            self.assertEqual((await self.ask("GET", path, OURS, Accept="text/html")).status, 200)
        self.assertEqual((await self.ask("HEAD", NGINX, OURS)).headers["docker-content-digest"], str(self.manifest))
        self.assertEqual((await self.ask("POST", UPLOADS, OURS)).status, 202)
        wire = await self.connect(self.port)
        wire.transport.write(request("GET", "/events", Authorization=OURS))
        self.assertIn("text/event-stream", (await wire.head()).headers["content-type"])

    async def test_the_door_can_be_opened_and_shut_while_it_is_in_use(self) -> None:
        for opened, expected in ((True, 200), (False, 401)):
            self.access.change(self.users, anonymous_pull=opened)
            self.assertEqual((await self.ask("GET", NGINX)).status, expected)
            self.assertEqual((await self.ask("POST", UPLOADS)).status, 401)
        self.access.change(None)
        self.assertEqual((await self.ask("POST", UPLOADS)).status, 202)

    async def test_our_password_is_not_for_the_images_registry(self) -> None:
        await self.ask("GET", NGINX, OURS)
        self.assertEqual(self.registry.authorizations, [None])

    async def test_who_has_shown_our_password_is_not_asked_for_the_image_registrys(self) -> None:
        self.registry.before = wants_credentials
        answer = await self.ask("GET", NGINX, OURS)
        self.assertEqual(answer.status, 401)
        self.assertNotIn("www-authenticate", answer.headers)
        self.assertIn("carries one user", json.loads(answer.body)["errors"][0]["detail"]["advice"])

    async def test_what_a_browser_asks_for_another_site_is_refused_before_its_password_is_looked_at(self) -> None:
        for method, path in (("GET", NGINX), ("POST", UPLOADS), ("GET", "/healthz"), ("OPTIONS", "/v2/"), ("GET", "/")):
            answer = await self.ask(method, path, OURS, Sec_Fetch_Site="cross-site")
            self.assertEqual(answer.status, 403)
            self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "DENIED")
            self.assertIn("--alias x:5000", json.loads(answer.body)["errors"][0]["detail"]["advice"])
        self.assertEqual(self.users.asked, [])
        lines = await self.logged(5)
        self.assertIn("info 127.0.0.1 GET '/healthz' 403", lines[2])
        self.assertIn("a browser asks for x, which is no name of this registry", lines[2])

    async def test_a_body_is_refused_before_it_is_sent(self) -> None:
        wire = await self.connect(self.port)
        head = request("PUT", UPLOADS + "known?digest=x", Content_Length="9000000", Expect="100-continue")
        wire.transport.write(head)
        self.assert_refused(await wire.response())
        self.assertEqual(self.uploads.bodies, [])

    async def test_too_many_guesses_are_503(self) -> None:
        self.users.busy = True
        self.assertEqual((await self.ask("GET", "/v2/", OURS)).status, 503)
        self.assertEqual((await self.ask("GET", "/metrics", OURS)).status, 503)

    async def test_a_client_that_leaves_while_its_password_is_checked_is_one_line_in_the_log(self) -> None:
        for path in ("/metrics", "/v2/"):
            self.users.gate = Deferred()
            wire = await self.connect(self.port)
            wire.transport.write(request("GET", path, Authorization=OURS))
            while len(self.users.asked) < 1:
                await self.turn()
            wire.transport.abortConnection()
            await wire.closed()
            self.users.asked.clear()
            await self.turn()
            self.users.gate.callback(None)
            [line] = await self.logged(1)
            self.assertIn(" 499, 0 bytes", line)
            self.lines.clear()

    async def test_a_check_is_given_up_when_its_client_leaves(self) -> None:
        for path in ("/metrics", "/v2/"):
            cancelled: list[object] = []
            self.users.gate = Deferred(cancelled.append)
            wire = await self.connect(self.port)
            wire.transport.write(request("GET", path, Authorization=OURS))
            while not self.users.asked:
                await self.turn()
            wire.transport.abortConnection()
            await wire.closed()
            self.users.asked.clear()
            await self.turn()
            self.assertEqual(len(cancelled), 1, path)

    async def test_the_check_is_told_where_the_client_is(self) -> None:
        await self.ask("GET", "/v2/", OURS)
        await self.ask("GET", "/metrics", OURS)
        self.assertEqual(self.users.clients, ["127.0.0.1"] * 2)

    async def test_the_log_and_the_page_hold_no_password(self) -> None:
        await self.ask("GET", NGINX, OURS)
        await self.ask("GET", NGINX, PODS)
        said = repr(self.monitoring.heard) + "".join(self.lines)
        for secret in ("secret", OURS.split()[1], PODS.split()[1], "anna"):
            self.assertNotIn(secret, said)


class AnonymousPullTests(AccessCase):
    anonymous_pull = True

    async def test_reading_needs_no_password(self) -> None:
        for path in ("/", NGINX, "/metrics", "/status.css"):
            self.assertEqual((await self.ask("GET", path, Accept="text/html")).status, 200)

    async def test_writing_does(self) -> None:
        session = UPLOADS + "known"
        for method, path in (("POST", UPLOADS), ("PATCH", session), ("PUT", session), ("DELETE", session)):
            for shown in ("", PODS):
                self.assert_refused(await self.ask(method, path, shown, Content_Length="0"), asked=not shown)
        self.assertEqual((await self.ask("POST", UPLOADS, OURS)).status, 202)

    async def test_a_client_finds_out_at_v2_whether_it_can_log_in(self) -> None:
        self.assert_refused(await self.ask("GET", "/v2/"))
        self.assert_refused(await self.ask("GET", "/v2/", PODS))
        self.assertEqual((await self.ask("GET", "/v2/", OURS)).status, 200)

    async def test_a_pods_secret_goes_on_to_the_images_registry_and_ours_does_not(self) -> None:
        await self.ask("HEAD", NGINX, PODS)
        await self.ask("HEAD", NGINX, OURS)
        await self.ask("HEAD", NGINX)
        self.assertEqual(self.registry.authorizations, [BasicAuth("pod", "pull-secret"), None, None])

    async def test_a_password_of_ours_that_is_not_right_any_more_goes_nowhere(self) -> None:
        for shown in (basic("anna", "changed"), basic("former", "secret")):
            self.assertEqual((await self.ask("HEAD", NGINX, shown)).status, 200)
        self.assertEqual(self.registry.authorizations, [None, None])
        # Nor when no password is asked for any more.
        self.access.change(None)
        await self.ask("HEAD", NGINX, OURS)
        self.assertEqual(self.registry.authorizations, [None, None, None])

    async def test_who_has_shown_a_former_password_is_not_asked_for_the_image_registrys(self) -> None:
        self.registry.before = wants_credentials
        answer = await self.ask("GET", NGINX, basic("anna", "changed"))
        self.assertEqual(answer.status, 401)
        self.assertNotIn("www-authenticate", answer.headers)
        self.assertIn("carries one user", json.loads(answer.body)["errors"][0]["detail"]["advice"])

    async def test_a_node_is_asked_for_a_pods_secret_when_the_images_registry_wants_one(self) -> None:
        self.registry.before = wants_credentials
        self.assert_refused(await self.ask("HEAD", NGINX))
        self.assertNotIn("www-authenticate", (await self.ask("HEAD", NGINX, OURS)).headers)


class OpenTests(WireTestCase):
    async def test_without_users_nobody_is_asked_and_everything_shown_is_the_image_registrys(self) -> None:
        registry = FakeRegistry()
        registry.tag("docker.io/library/nginx:1", OCI_INDEX, WholeBlob(b"{}"))
        wire = await self.connect(self.listen(make_site(registry, Clock())))
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)
        self.assertEqual((await wire.ask("GET", NGINX, Authorization=PODS)).status, 200)
        self.assertEqual(registry.authorizations, [BasicAuth("pod", "pull-secret")])
