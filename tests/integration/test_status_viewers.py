"""More status pages are open than are kept up to date: the others say so, and are loaded again now and then."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.support.browser import browser, eventually
from tests.integration.support.daemon import running
from tests.integration.support.rig import EngineAddress

# As many as are kept up to date.
PLACES = 32


@contextmanager
def viewer(host: str) -> Iterator[None]:
    """A page that is open."""
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/events")
    assert connection.getresponse().status == 200
    yield
    connection.close()


def test_a_page_for_which_there_is_no_place_says_so_and_is_loaded_again(tmp_path: Path) -> None:
    nowhere = EngineAddress("none", "unix:///run/no-engine.sock")
    with running(nowhere, tmp_path) as daemon, browser() as window, ExitStack() as others:
        for _ in range(PLACES):
            others.enter_context(viewer(daemon.host))
        window.open(f"http://{daemon.host}/")
        said = eventually(lambda: window.text("#live") if "reloads" in window.text("#live") else "")
        assert said.startswith(f"Not live: {PLACES} status pages are live already")
        assert window.faults() == []
        window.screenshot(Path(os.environ.get("K3DREG_TEST_SCREENSHOTS", tmp_path)) / "status-no-place.png")

        # It is loaded again, and still there is no place.
        window.run("window.loaded_before = true")
        eventually(lambda: not window.run("return window.loaded_before"))
        assert eventually(lambda: "Not live" in window.text("#live"))

        # There is one now.
        others.close()
        assert eventually(lambda: window.text("#live") == "Live.")
        assert not [line for line in window.complaints() if "503" not in line]
