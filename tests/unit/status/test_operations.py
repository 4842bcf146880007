"""Pages about the daemon itself, request IDs, and the log as JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, define, evolve, field
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from k3dreg.commands.config_files import text_of
from k3dreg.daemon.json_log import JsonObserver, fields_of
from k3dreg.formats.trace_context import trace_id_of
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.manifest import make_image_manifest
from k3dreg.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER
from k3dreg.oci.user_agent import USER_AGENT
from k3dreg.reporting.activity import Activity, ContentRequest, Progress, RequestReport
from k3dreg.status.cluster_snippets import Address, snippets
from k3dreg.status.operations import Operations
from k3dreg.status.overview import Listed, Live, NodeCounts, Overview, Running, SeenPull
from k3dreg.store.interfaces import PushedUsage
from k3dreg.web.site import make_site
from tests.fakes.registry import FakeRegistry, WholeBlob
from tests.fakes.wire import Wire, WireTestCase, request

HOSTILE = "<script>alert(1)</script>\"'&"
TRACE = "0af7651916cd43dd8448eb211c80319c"
REPORT = RequestReport("a" * 16, 0.0, HOSTILE, "GET", "blob", HOSTILE, 404, 0, 0.1, 0.1, reason=HOSTILE)


@define
class FakeMonitoring:
    """Says what it was told to, and keeps what it is told."""

    trouble: str = ""
    now: Live = field(factory=Live)
    here: Overview = Factory(lambda: Overview("1", "Docker", "unix:///x", images=(Listed(HOSTILE, HOSTILE, 1),)))
    heard: list[Any] = field(factory=list)

    async def engine_trouble(self) -> str:
        return self.trouble

    async def metrics(self) -> tuple[str, bytes]:
        return "text/plain; version=0.0.4", b"up 1\n"

    def live(self) -> Live:
        return self.now

    async def overview(self) -> Overview:
        return self.here

    def began(self, activity: Activity) -> None:
        self.heard.append(("began", activity.kind))

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        self.heard.append(("ended", activity.progress()))

    def asked(self, request: ContentRequest) -> None:
        self.heard.append(request)

    def answered(self, report: RequestReport) -> None:
        self.heard.append(report)


class OperationsCase(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.monitoring = FakeMonitoring()
        self.registry = FakeRegistry()
        self.manifest = self.registry.tag("docker.io/library/nginx:1", OCI_INDEX, WholeBlob(b"{}"))
        self.operations = Operations(self.monitoring, self.clock)
        site = make_site(self.registry, self.clock, operations=self.operations, observer=self.monitoring)
        self.port = self.listen(site)

    async def wire(self) -> Wire:
        return await self.connect(self.port)


class HealthTests(OperationsCase):
    async def test_it_is_alive_without_an_engine_and_not_ready(self) -> None:
        wire = await self.wire()
        self.assertEqual((await wire.ask("GET", "/readyz")).status, 200)
        self.monitoring.trouble = "Docker is away"
        self.assertEqual((await wire.ask("GET", "/healthz")).status, 200)
        answer = await wire.ask("GET", "/readyz")
        self.assertEqual((answer.status, json.loads(answer.body)["reason"]), (503, "Docker is away"))

    async def test_metrics_are_as_they_are_told(self) -> None:
        answer = await (await self.wire()).ask("GET", "/metrics")
        self.assertEqual((answer.headers["content-type"], answer.body), ("text/plain; version=0.0.4", b"up 1\n"))

    async def test_pages_are_read_only(self) -> None:
        wire = await self.wire()
        for path in ("/healthz", "/metrics", "/status.css"):
            self.assertEqual((await wire.ask("POST", path)).status, 405)


class PageTests(OperationsCase):
    async def test_a_browser_gets_the_page_and_a_program_a_line(self) -> None:
        wire = await self.wire()
        page = await wire.ask("GET", "/", Accept="text/html,*/*")
        self.assertTrue(page.body.startswith(b"<!DOCTYPE html>"))
        self.assertIn("default-src 'none'", page.headers["content-security-policy"])
        self.assertNotIn("unsafe", page.headers["content-security-policy"])
        self.assertIn("text/plain", (await wire.ask("GET", "/")).headers["content-type"])

    async def test_the_page_tells_what_pushed_content_uses_and_what_rules_would_free(self) -> None:
        for use, said in (
            (PushedUsage(1_500_000), b"1.5 MB on the disk.<"),
            (PushedUsage(2_000, 2, 500), b"The rules of --retain remove 2 tags within an hour, which frees 500 B."),
        ):
            self.monitoring.here = evolve(self.monitoring.here, pushed_use=use)
            self.assertIn(said, (await (await self.wire()).ask("GET", "/", Accept="text/html")).body)

    async def test_whatever_is_shown_is_escaped(self) -> None:
        pull = SeenPull(
            1, HOSTILE, HOSTILE, 0.0, node=HOSTILE, reason=HOSTILE, status=404, requests=(REPORT,), waiting=(HOSTILE,)
        )
        running = Running("pull", HOSTILE, 1, Progress(1, 2), 3)
        self.monitoring.now = Live((pull,), (running,), (pull,), (REPORT,), (NodeCounts(HOSTILE),))
        body = (await (await self.wire()).ask("GET", "/", Accept="text/html")).body
        self.assertEqual(body.count(b"<script"), 1)
        self.assertIn(b"&lt;script&gt;alert(1)", body)
        self.assertNotIn(b'"\'&"', body)

    async def test_nothing_on_the_page_is_from_elsewhere(self) -> None:
        wire = await self.wire()
        body = (await wire.ask("GET", "/", Accept="text/html")).body
        for path in ("/status.css", "/status.js", "/status.svg"):
            self.assertIn(path.encode(), body)
            self.assertEqual((await wire.ask("GET", path)).status, 200)
        self.assertNotIn(b"https://", body)

    async def test_events_are_sent_when_something_changed_and_not_else(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("GET", "/events"))
        head = await wire.head()
        self.assertEqual(head.headers["content-type"], "text/event-stream")
        await wire.until(lambda: b"None yet." in wire.received)
        wire.received = b""
        self.clock.advance(0.5)
        await self.turn()
        self.monitoring.now = Live(others=(REPORT,))
        self.clock.advance(0.5)
        await wire.until(lambda: b"&lt;script&gt;" in wire.received)
        self.assertIn(b"event: others\ndata: ", wire.received)
        self.assertNotIn(b"event: running", wire.received)
        wire.received = b""
        for _ in range(31):
            self.clock.advance(0.5)
        await wire.until(lambda: b":\n\n" in wire.received)

    async def test_a_page_that_is_closed_leaves_nothing(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("GET", "/events"))
        await wire.until(lambda: b"event: " in wire.received)
        wire.transport.abortConnection()
        await wire.closed()
        while not self.monitoring.heard:
            await self.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_stop_ends_the_events_of_a_page_that_is_open(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("GET", "/events"))
        await wire.until(lambda: b"event: others" in wire.received)
        self.operations.events.shutdown()
        await wire.until(lambda: wire.received.endswith(b"0\r\n\r\n"))

    async def test_there_are_only_so_many_streams(self) -> None:
        for _ in range(32):
            wire = await self.wire()
            wire.transport.write(request("GET", "/events"))
            await wire.head()
        refused = await (await self.wire()).ask("GET", "/events")
        self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "15"))
        self.assertIn("32 status pages are live already", json.loads(refused.body)["errors"][0]["message"])


class NoPageTests(OperationsCase):
    def setUp(self) -> None:
        super().setUp()
        self.operations.show_page(False)

    async def test_without_the_page_there_is_the_line_and_health(self) -> None:
        wire = await self.wire()
        self.assertIn("text/plain", (await wire.ask("GET", "/", Accept="text/html")).headers["content-type"])
        for path in ("/events", "/status.js"):
            self.assertEqual((await wire.ask("GET", path)).status, 404)
        self.assertEqual((await wire.ask("GET", "/healthz")).status, 200)

    async def test_the_page_can_be_turned_on_and_off_while_it_runs(self) -> None:
        wire = await self.wire()
        self.operations.show_page(True)
        self.assertIn("text/html", (await wire.ask("GET", "/", Accept="text/html")).headers["content-type"])
        self.assertEqual((await wire.ask("GET", "/status.js")).status, 200)
        self.operations.show_page(False)
        self.assertEqual((await wire.ask("GET", "/status.js")).status, 404)


class IdentityTests(OperationsCase):
    async def test_an_errors_request_is_found_in_the_log(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("GET", "/v2/x/manifests/none", traceparent=f"00-{TRACE}-b7ad6b7169203331-01"))
        await wire.until(lambda: b"}]}" in wire.received)
        head, _, body = wire.received.partition(b"\r\n\r\n")
        [error] = json.loads(body)["errors"]
        request_id = error["detail"]["request_id"]
        self.assertEqual(error["detail"]["advice"], "docker pull it")
        self.assertIn(f"X-Request-Id: {request_id}".encode(), head)
        self.assertIn(f"[{request_id} trace {TRACE}]", (await self.logged())[0])
        [asked, report] = self.monitoring.heard
        self.assertEqual((asked.id, asked.method, asked.is_manifest, asked.may_pull), (request_id, "GET", True, True))
        self.assertEqual((asked.client, str(asked.reference)), (report.client, "x:none"))
        self.assertEqual((report.id, report.trace_id, report.refusal), (request_id, TRACE, "ManifestUnknown"))
        self.assertEqual((report.route, report.status), ("manifest", 404))

    async def test_a_body_is_an_activity_with_progress(self) -> None:
        blob = self.registry.put(WholeBlob(b"0123456789"))
        await (await self.wire()).ask("GET", f"/v2/x/blobs/{blob}")
        await self.logged()
        asked, began, ended, report = self.monitoring.heard
        self.assertEqual((asked.is_manifest, str(asked.reference)), (False, f"x@{blob}"))
        self.assertEqual((began, ended), (("began", "transfer"), ("ended", Progress(10, 10))))
        self.assertEqual((report.sent, report.route, report.refusal), (10, "blob", ""))

    async def test_what_a_manifest_lists_is_told_with_its_answer(self) -> None:
        layer = Descriptor(OCI_LAYER, Digest.of(b"layer"), 5)
        descriptor, data = make_image_manifest(evolve(layer, media_type=OCI_CONFIG), [layer])
        self.registry.tag("x:1", descriptor.media_type, WholeBlob(data))
        self.registry.tag("x:odd", descriptor.media_type, WholeBlob(b"[]"))
        self.registry.tag("x:large", descriptor.media_type, WholeBlob(data + b" " * 256 * 1024))
        wire = await self.wire()
        found = []
        for target in ("1", "odd", "large"):
            answer = await wire.ask("GET", f"/v2/x/manifests/{target}")
            self.assertEqual(answer.status, 200)
            if target == "1":
                self.assertEqual(answer.body, data)
            await self.logged()
            found.append(self.monitoring.heard[-1].contents)
        self.assertEqual([None if each is None else each.layers for each in found], [(layer,), None, None])

    async def test_a_push_tools_look_and_an_engines_pull_for_k3dreg_begin_no_pull(self) -> None:
        wire = await self.wire()
        await wire.ask("HEAD", "/v2/library/nginx/manifests/1?ns=docker.io", Accept="*/*")
        await wire.ask("GET", "/v2/library/nginx/manifests/1?ns=docker.io", **{"User-Agent": USER_AGENT})
        await self.logged()
        asked = [each for each in self.monitoring.heard if isinstance(each, ContentRequest)]
        self.assertEqual([each.may_pull for each in asked], [False, False])


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-more", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", ""),
        (f"ff-{TRACE}-b7ad6b7169203331-01", ""),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", ""),
        ("\x1b[2J", ""),
        (None, ""),
    ],
)
def test_only_a_valid_traceparent_is_believed(header: str | None, trace: str) -> None:
    assert trace_id_of(header) == trace


@pytest.mark.parametrize(
    ("header", "address"),
    [
        ("reg.example:5005", Address("reg.example", 5005)),
        ("reg.example", Address("reg.example", 80)),
        ("[fd00::1]:5005", Address("[fd00::1]", 5005)),
        # The browser's own machine is not the nodes'.
        ("localhost:5005", Address("", 5005)),
        ("k3d-registry.localhost:5005", Address("", 5005)),
        ("127.0.0.1:5005", Address("", 5005)),
        ("[::1]:5005", Address("", 5005)),
        (None, Address("", 5000)),
        ('x"><script>', Address("", 5000)),
        ("x:5000\nevil", Address("", 5000)),
        ("x:0", Address("", 5000)),
        ("x:99999", Address("", 5000)),
        ("-x:5005", Address("", 5000)),
    ],
)
def test_a_snippet_has_the_address_of_the_page_if_it_is_one(header: str | None, address: Address) -> None:
    assert Address.of(header) == address


@pytest.mark.parametrize("address", [Address("10.0.0.7", 5005), Address("", 5005), Address("10.0.0.7", 443, True)])
def test_a_snippet_is_what_its_command_prints(address: Address) -> None:
    html = "".join(_text(tag) for tag in snippets(address))
    found = re.findall(r"Printed by k3dreg config (.*)", html)
    assert [command.split()[0] for command in found] == ["k3d", "k3s", "kind", "minikube"]
    for command in found:
        printed = re.sub(r"^# ==> .* <==$\n", "", text_of(command.split()), flags=re.MULTILINE)
        for part in printed.strip().split("\n\n"):
            assert part in html
    assert ("10.0.0.7" in html) == bool(address.host)
    assert ("https://" in html) == address.secure


def _text(node: Any) -> str:
    """What a reader sees of a tag, with its parts in lines of their own."""
    if isinstance(node, str):
        return node
    inner = "".join(map(_text, node.children))
    return inner if node.tagName == "code" else f"{inner}\n"


def test_a_request_in_json_has_the_documented_fields() -> None:
    out = io.StringIO()
    event = {
        "log_level": LogLevel.warn,
        "log_time": 0.0,
        "log_namespace": "k3dreg.web.request_log",
        "log_format": "{line}",
    }
    report = evolve(REPORT, trace_id=TRACE, steps=("pull 1.0s",))
    JsonObserver(out)({**event, "line": "a\nb", "report": report})
    [line] = out.getvalue().splitlines()
    assert json.loads(line) == {
        **{
            "time": "1970-01-01T00:00:00.000+00:00",
            "level": "warn",
            "logger": "k3dreg.web.request_log",
            "message": "a\nb",
        },
        **{"event": "request", "request_id": "a" * 16, "client": HOSTILE, "method": "GET", "route": "blob"},
        **{"subject": HOSTILE, "status": 404, "source": "", "steps": ["pull 1.0s"], "bytes": 0, "seconds": 0.1},
        **{"head_seconds": 0.1, "reason": HOSTILE, "refusal": "", "aborted": False, "trace_id": TRACE},
    }


def test_every_field_is_documented() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/logs-and-metrics.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| (all|faults|requests|pulls|requests, pulls) \|", text, re.MULTILINE)
    event = {"log_format": "it broke", "log_failure": Failure(ValueError("odd"))}
    fields = set(fields_of({"log_format": "x"}))
    assert {name for name, where in documented if where == "all"} == fields
    assert {name for name, where in documented if where == "faults"} == set(fields_of(event)) - fields
    requests = set(fields_of({"log_format": "{report}", "report": REPORT})) - fields
    assert {name for name, where in documented if "requests" in where} == requests
    pulls = set(fields_of({"log_format": "{pull}", "pull": SeenPull(1, "x", "x", 0.0)})) - fields
    assert {name for name, where in documented if "pulls" in where} == pulls


def test_a_fault_in_json_has_its_traceback() -> None:
    fields = fields_of({"log_failure": Failure(ValueError("odd")), "log_format": "it broke"})
    assert fields["message"] == "it broke"
    assert "odd" in fields["traceback"]
