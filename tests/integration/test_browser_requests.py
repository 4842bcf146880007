"""What pages of other sites can do to a k3dreg on the machine of the browser: nothing."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.support.browser import Browser, browser, eventually
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.registry_client import RegistryClient, digest_of
from tests.integration.support.rig import EngineAddress

# Names that lead to this machine in the browser of these tests, as DNS rebinding makes them do.
ATTACKER, ALIAS = "attacker.example", "registry.example"
# A name that no DNS server is asked for either, and an address of this machine that is not loopback to a browser.
RESOLVED = f"MAP {ATTACKER} 127.0.0.1,MAP {ALIAS} 127.0.0.1,MAP 192.0.2.1 127.0.0.1"


class Page(BaseHTTPRequestHandler):
    """The attacker's own site: one empty page at every path, which tells no other site where it comes from."""

    def do_GET(self) -> None:
        body = b"<!DOCTYPE html><title>attacker</title><body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Not to the terminal."""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser(f"--host-resolver-rules={RESOLVED}") as window:
        yield window


@pytest.fixture(scope="module")
def attacker() -> Iterator[str]:
    """The URL of the attacker's site."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{ATTACKER}:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A k3dreg without an engine: it takes pushes all the same."""
    with running(EngineAddress("none", "unix:///run/no-engine.sock"), tmp_path) as daemon:
        yield daemon


@pytest.fixture
def pushed(daemon: Daemon) -> str:
    """The path of a private layer's blob."""
    data = b"a private layer"
    client = RegistryClient(daemon.host)
    path = f"/v2/private/blobs/{digest_of(data)}"
    started = client.ask("POST", f"/v2/private/blobs/uploads/?digest={digest_of(data)}", body=data)
    assert started.status == 201
    assert client.ask("GET", path).body == data
    return path


def port_of(daemon: Daemon) -> str:
    return daemon.host.rpartition(":")[2]


def fetched(window: Browser, url: str, options: str = "{}") -> str:
    """The status of a `fetch` by the page that is open, or what it failed with."""
    script = f"""
        const done = arguments[0];
        fetch('{url}', {options}).then(answer => done(answer.type + ' ' + answer.status), error => done(String(error)));
    """
    return str(window.driver.execute_async_script(script))


def test_a_page_whose_name_is_rebound_reads_and_changes_nothing(window: Browser, daemon: Daemon, pushed: str) -> None:
    window.open(f"http://{ATTACKER}:{port_of(daemon)}/v2/_catalog")
    assert "DENIED" in window.text("body")
    assert f"--alias {ATTACKER}:{port_of(daemon)}" in window.text("body")
    assert fetched(window, pushed) == "basic 403"
    for method in ("PUT", "POST", "DELETE", "OPTIONS", "HEAD"):
        assert fetched(window, pushed, f"{{method: '{method}'}}") == "basic 403"
    # Headers that a page may set do not make it anything else than a browser.
    tool = "{headers: {'User-Agent': 'containerd/1.7', 'Accept-Language': ''}, referrerPolicy: 'no-referrer'}"
    assert fetched(window, pushed, tool) == "basic 403"
    assert RegistryClient(daemon.host).ask("GET", pushed).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "192.0.2.1"])
def test_an_image_of_another_sites_page_makes_no_pull(
    window: Browser, attacker: str, daemon: Daemon, host: str
) -> None:
    window.open(attacker)
    name = f"image-{uuid.uuid4().hex}"
    source = f"http://{host}:{port_of(daemon)}/v2/{name}/manifests/1?ns=docker.io"
    window.run(f"const image = new Image(); image.src = '{source}'; document.body.append(image)")
    assert daemon.wait_for(rf"{name}\S* (\d\d\d)\b")[1] == "403"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_a_form_of_another_sites_page_begins_no_upload(
    window: Browser, attacker: str, daemon: Daemon, host: str
) -> None:
    window.open(attacker)
    action = f"http://{host}:{port_of(daemon)}/v2/form/blobs/uploads/"
    window.run(f"""
        const form = document.createElement('form');
        Object.assign(form, {{method: 'POST', enctype: 'text/plain', action: '{action}'}});
        document.body.append(form);
        form.submit();
    """)
    assert eventually(lambda: "DENIED" in window.text("body"))
    assert list(daemon_uploads(daemon)) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_nor_does_its_script(window: Browser, attacker: str, daemon: Daemon, pushed: str, host: str) -> None:
    window.open(attacker)
    base = f"http://{host}:{port_of(daemon)}"
    begun = fetched(window, f"{base}/v2/script/blobs/uploads/", "{method: 'POST', mode: 'no-cors', body: 'x'}")
    assert begun == "opaque 0"
    daemon.wait_for(r"POST \S*script\S* 403")
    assert fetched(window, f"{base}{pushed}", "{mode: 'no-cors'}") == "opaque 0"
    daemon.wait_for(r"GET \S*private\S* 403")
    assert fetched(window, f"{base}{pushed}", "{method: 'DELETE'}").startswith("TypeError")
    assert list(daemon_uploads(daemon)) == []
    assert RegistryClient(daemon.host).ask("GET", pushed).status == 200


def test_the_page_is_there_under_every_name_of_this_registry(window: Browser, attacker: str, tmp_path: Path) -> None:
    nowhere = EngineAddress("none", "unix:///run/no-engine.sock")
    window.complaints()  # of what was refused before
    with running(nowhere, tmp_path, "--alias", f"{ALIAS}:5000") as daemon:
        for host in ("127.0.0.1", "localhost", "registry.localhost", "192.0.2.1", ALIAS):
            window.open(f"http://{host}:{port_of(daemon)}/")
            assert window.text("h1") == "k3dreg no engine"
            assert eventually(lambda: window.text("#live") == "Live.")
            # What the page itself fetches is of the same site.
            assert fetched(window, "/v2/_catalog") == "basic 200"
            assert window.complaints() == []
        # A link of another site leads to the page, for a person to read.
        for host in ("localhost", "192.0.2.1"):
            window.open(attacker)
            window.run(f"location = 'http://{host}:{port_of(daemon)}/'")
            assert eventually(lambda: window.text("#live") == "Live.")


def daemon_uploads(daemon: Daemon) -> Iterator[str]:
    """The upload sessions that requests have begun, as the log has them."""
    yield from re.findall(r"POST \S+ .*\b202\b", daemon.log())
