"""The status page in a real browser, of a daemon with a real engine, and of one without."""

from __future__ import annotations

import http.client
import os
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from k3dreg.commands.config_files import text_of
from tests.integration.conftest import Push, PushedImage
from tests.integration.support import images
from tests.integration.support.browser import Browser, browser, eventually
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.slow import slowly
from tests.integration.support.upstream import Upstream

MB = 1000 * 1000
HOSTILE = "/v2/%3Cscript%3Edocument.title='run'%3C/script%3E<img%20src=x%20onerror=document.title='run'>/manifests/x"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as window:
        yield window


@pytest.fixture
def slow_image(push: Push, busybox: bytes) -> PushedImage:
    """Docker pulls it in some seconds, by way of `slowly`: it has none of its bytes yet."""
    large = images.LayerMaker({})
    large.file("large", images.noise(6 * MB, f"page {uuid.uuid4()}"))
    return push("k3dreg-test/page", [*images.small_layers(busybox, "page"), large.layer(None)], "page")


@pytest.mark.engines("docker29")
def test_the_page_in_a_browser(
    engine: EngineAddress,
    daemon: Daemon,
    window: Browser,
    upstream: Upstream,
    small_image: PushedImage,
    slow_image: PushedImage,
    busybox: bytes,
    tmp_path: Path,
) -> None:
    small_image.pull_into(engine)
    Puller(daemon.host, small_image.registry).image(small_image.repository, "1")
    Upstream(daemon.host).push_image("team/pushed", "1", images.small_layers(busybox, "pushed"), images.COMMAND)
    window.open(f"http://{daemon.host}/")

    # Which engine, what it has, what was pushed, which sources are open: here those that need no directory of Docker's.
    said = window.text("main")
    assert "containerd image store" in said
    assert engine.socket in said
    assert small_image.name in said
    assert re.search(r"team/pushed:1\s+\d\.\d MB\s+\d+ s\s+sha256:", said)
    assert re.search(r"1 image served without a pull\s+\d\.\d MB served, 0 B fetched", window.text("#saved"))
    port = daemon.host.rpartition(":")[2]
    snippet = window.run("return document.querySelector('details pre').textContent")
    assert snippet == text_of(["k3d", "--mode", "host", "--port", port])

    # The bar of a slow pull moves, without the page being loaded again.
    def done() -> float:
        label = f"{image.name} to 127.0.0.1"
        script = f"const bar = document.querySelector('progress[aria-label=\"{label}\"]'); return bar ? bar.value : 0"
        return float(window.run(script))

    with slowly(upstream.address, 1 * MB) as detour:
        image = evolve(slow_image, registry=detour)
        image.remove_from(engine)
        pull = threading.Thread(target=lambda: Puller(daemon.host, detour).image(image.repository, "1"))
        pull.start()
        try:
            first = eventually(done)
            assert eventually(lambda: done() > first)
            assert f"Docker pulls {image.name}" in window.text("#running")
            screenshots = Path(os.environ.get("K3DREG_TEST_SCREENSHOTS", tmp_path))
            for scheme in ("light", "dark"):
                window.prefer(scheme)
                assert window.faults() == []
                window.screenshot(screenshots / f"status-{scheme}.png")
            # On a phone nothing sticks out to the side.
            with window.as_wide_as(360):
                assert window.run("return document.documentElement.scrollWidth") <= 360
                assert window.faults() == []
                window.driver.save_screenshot(str(screenshots / "status-phone.png"))
        finally:
            pull.join(60)
            image.remove_from(engine)

    # What has ended is shown with its reason, and what is hostile is shown and not run.
    assert eventually(lambda: re.search(rf"{image.name} to 127.0.0.1: \d+ layers sent \(", window.text("#pulls")))
    ask(daemon.host, HOSTILE)
    assert eventually(lambda: "onerror=document.title" in window.text("#others"))
    assert "not a repository name" in window.text("#others")
    assert window.driver.title == "k3dreg"
    assert window.run("return document.querySelectorAll('main img, main script').length") == 0

    # A pull unfolds to its requests, and stays unfolded and focused when the next one ends.
    unfolded = "#pulls details[open]"
    assert window.text(unfolded) == ""
    window.run("const first = document.querySelector('#pulls summary'); first.focus(); first.click()")
    assert eventually(lambda: f"GET {image.registry}/{image.repository} blob" in window.text(unfolded))
    assert window.faults() == []
    Puller(daemon.host, small_image.registry).image(small_image.repository, "1")
    assert eventually(lambda: window.text("#pulls li").count(small_image.name) == 1)
    assert f"GET {image.registry}/{image.repository} blob" in window.text(unfolded)
    assert window.run("return document.activeElement.parentElement.open")

    assert window.complaints() == []
    assert window.hosts_asked() == {f"http://{daemon.host}"}
    daemon.check_log()


def test_the_page_without_an_engine_says_why(window: Browser, tmp_path: Path) -> None:
    nowhere = EngineAddress("none", "unix:///run/no-engine.sock")
    with running(nowhere, tmp_path) as daemon:
        window.open(f"http://{daemon.host}/")
        assert window.text("h1") == "k3dreg no engine"
        assert "its socket does not exist" in window.text("main")
        assert "start Docker" in window.text("main")
        assert eventually(lambda: window.text("#live") == "Live.")
        assert window.faults() == []
        assert window.complaints() == []
        # Without scripts it is a page all the same, as of its loading.
        plain = window.source_without_script(f"http://{daemon.host}/")
        assert "As of " in plain
        assert "its socket does not exist" in plain
        window.open(f"http://{daemon.host}/")
        assert eventually(lambda: window.text("#live") == "Live.")
    # It tells that it is of the past now.
    assert eventually(lambda: "lost" in window.text("#live"))


def ask(host: str, path: str) -> int:
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status
