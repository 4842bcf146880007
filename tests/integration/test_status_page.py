"""The status page in a real browser: headless Chromium, driven by its own driver."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

pytestmark = pytest.mark.integration

TOOLS = ("chromium", "chromedriver")
MIB = 1024 * 1024
HOSTILE = "/v2/%3Cscript%3Edocument.title='run'%3C/script%3E<img%20src=x%20onerror=document.title='run'>/manifests/x"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A daemon without an engine: the page has to work then, too."""
    directory = tmp_path_factory.mktemp("page")
    log = directory / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *[sys.executable, "-c", "from k3dreg.cli import main; main()"],
                *["--listen", "tcp:0:interface=127.0.0.1", "--state-dir", str(directory / "state")],
                *["--docker", "unix:///run/no-engine.sock"],
            ],
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        yield "127.0.0.1", int(_eventually(lambda: _port(log)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"needs {', '.join(missing)}: Debian's chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_the_page_in_a_browser(address: tuple[str, int], browser: Any, tmp_path: Path) -> None:
    host, port = address
    slow = SlowClient(host, port, push_blob(host, port, os.urandom(MIB) * 40))
    browser.get(f"http://{host}:{port}/")
    assert "no-engine.sock" in browser.page_source
    assert f"http://{host}:{port}" in browser.find_element("css selector", "pre").text

    # The bar of a transfer moves, without the page being loaded again.
    def value() -> int:
        found = browser.execute_script("const bar = document.querySelector('progress'); return bar ? bar.value : 0")
        return int(found)

    slow.take(MIB)
    first = _eventually(value)
    slow.take(20 * MIB)
    assert _eventually(lambda: value() > first)
    screenshots = Path(os.environ.get("K3DREG_TEST_SCREENSHOTS", tmp_path))
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        assert serious_faults(browser) == []
        browser.save_screenshot(str(screenshots / f"status-{scheme}.png"))
    # On a phone nothing sticks out to the side.
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # What has ended is shown with its reason, and what is hostile is shown and not run.
    slow.take(40 * MIB)
    ask(host, port, "GET", HOSTILE)
    recent = browser.find_element("id", "recent")
    assert _eventually(lambda: "onerror=document.title" in recent.text)
    assert "not a repository name" in recent.text
    assert "blob sha256:" in recent.text
    assert browser.title == "k3dreg"
    assert browser.find_elements("css selector", "#recent img, #recent script") == []

    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    urls = [url for message in asked for url in re.findall(r'"url":"(\w+://[^/"]*)', message)]
    assert urls
    assert {url for url in urls if not url.startswith("chrome")} == {f"http://{host}:{port}"}


def serious_faults(browser: Any) -> list[str]:
    """What axe-core says is serious or worse."""
    module = pytest.importorskip("axe_core_python")
    script = next(Path(module.__file__).parent.glob("**/axe.min.js")).read_text()
    browser.execute_script(script)
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    return [
        f"{each['id']}: {[node['html'] for node in each['nodes']]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


class SlowClient:
    """Reads a blob, as much of it as it is told to."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._socket.connect((host, port))
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("ascii"))
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        while size > 0 and (data := self._socket.recv(min(size, MIB))):
            size -= len(data)


def push_blob(host: str, port: int, data: bytes) -> str:
    """Returns its path."""
    digest = f"sha256:{sha256(data).hexdigest()}"
    status, headers = ask(host, port, "POST", "/v2/page/blobs/uploads/")
    assert status == 202
    location = headers["Location"]
    status, _ = ask(host, port, "PUT", f"{location}?digest={digest}", data)
    assert status == 201
    return f"/v2/page/blobs/{digest}"


def ask(host: str, port: int, method: str, path: str, body: bytes = b"") -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers


def _port(log: Path) -> str:
    found = re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text())
    return found[1] if found else ""


def _eventually(condition: Any) -> Any:
    end = time.monotonic() + 30
    while not (found := cast(object, condition())):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
