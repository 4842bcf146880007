"""A real browser: headless Chromium, driven by its own driver."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

_TOOLS = ("chromium", "chromedriver")


class Browser:
    """One window.  `driver` is selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str) -> Any:
        """Returns what the script returns."""
        return self.driver.execute_script(script)

    def text(self, selector: str) -> str:
        """What a reader sees of the first such element; "" while there is none."""
        # In one step: elements come and go while the page is kept up to date.
        found = self.run(f"const found = document.querySelector('{selector}'); return found ? found.innerText : ''")
        return str(found)

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    @contextlib.contextmanager
    def as_wide_as(self, width: int) -> Iterator[None]:
        """A window of that width, for the time of a `with`."""
        metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def source_without_script(self, url: str) -> str:
        """The page as one has it whose browser runs no scripts."""
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            self.open(url)
            root = self.driver.execute_cdp_cmd("DOM.getDocument", {})["root"]
            return str(self.driver.execute_cdp_cmd("DOM.getOuterHTML", {"nodeId": root["nodeId"]})["outerHTML"])
        finally:
            self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    def screenshot(self, file: Path) -> None:
        """Of the whole page."""
        height = self.run("return document.documentElement.scrollHeight")
        metrics = {"width": 1200, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.save_screenshot(str(file))
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def faults(self) -> list[str]:
        """What axe-core says is serious or worse for people who use more than their eyes and a mouse."""
        module = pytest.importorskip("axe_core_python")
        script = next(Path(module.__file__).parent.glob("**/axe.min.js")).read_text()
        self.run(script)
        found = self.driver.execute_async_script("const done = arguments[0]; axe.run().then(done)")
        return [
            f"{each['id']}: {[node['html'] for node in each['nodes']]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    def complaints(self) -> list[str]:
        """Warnings and errors in the console since the last time."""
        levels = ("SEVERE", "WARNING")
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in levels]

    def hosts_asked(self) -> set[str]:
        """`http://host:port` of everything the pages asked for."""
        messages = [entry["message"] for entry in self.driver.get_log("performance")]
        asked = [message for message in messages if "requestWillBeSent" in message]
        urls = {url for message in asked for url in re.findall(r'"url":"(\w+://[^/"]*)', message)}
        return {url for url in urls if not url.startswith("chrome")}


@contextlib.contextmanager
def browser(*arguments: str) -> Iterator[Browser]:
    """A browser for the time of a `with`, started with these `arguments`, too.

    Skips where there is none.  Fails where there has to be one: on the CI machine.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(missing)}: Debian's chromium and chromium-driver")
    assert not missing, f"{', '.join(missing)}: Debian's chromium and chromium-driver, and CI=true"
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # No word to anybody but the page: Chromium looks for updates and lists of its maker's.
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    window = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000")
    for argument in (*window, *quiet, *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def eventually(condition: Callable[[], T], seconds: float = 60) -> T:
    """What `condition` gives as soon as that is true.  A machine that is busy has time, one that is stuck has not."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return found
