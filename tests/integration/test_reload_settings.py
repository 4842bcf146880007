"""Each setting that SIGHUP changes is in force after it, in both directions."""

from __future__ import annotations

import base64
import json
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from tests.integration.conftest import EXPORTS_ONLY
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.registry_client import RegistryClient, digest_of, manifest
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream

pytestmark = pytest.mark.engines("docker29-classic")

NO_DELETING = '[environment]\nREGISTRY_STORAGE_DELETE_ENABLED = "false"'
# What `htpasswd -nbB -C 4 anna secret` prints.
ANNA = "anna:$2b$04$bslkMndHauT13j.Pkz9.d.pR7Z0AIilPGC5qZ6/fmJ3IuDF4yPxMW\n"


@define
class Reloaded:
    """A daemon, its settings file, and a client of it."""

    daemon: Daemon
    file: Path
    client: RegistryClient

    def set(self, text: str) -> str:
        """Write the file, send SIGHUP, and return what the log says of it."""
        since = len(self.daemon.log())
        self.file.write_text(text)
        self.daemon.send(signal.SIGHUP)
        self.daemon.wait_for("settings read again: .*\n", since=since)
        # The daemon names what needs a restart in the same turn of the reactor, before it answers another request.
        assert self.client.ask("GET", "/healthz").status == 200
        return self.daemon.log()[since:]

    def check(self, name: str, on: str, off: str, is_on: Callable[[], bool]) -> None:
        """Turn the setting `name` on and off, twice.  `off` is what the daemon has now."""
        assert is_on() is False
        for text, wanted in ((on, True), (off, False), (on, True), (off, False)):
            said = self.set(text)
            assert f"changed {name}\n" in said
            assert "to apply these changed settings" not in said
            assert is_on() is wanted, f"after {text!r}"


@pytest.fixture
def first() -> str:
    """The text of the settings file at the start."""
    return ""


@pytest.fixture
def daemon(engine: EngineAddress, first: str, tmp_path: Path) -> Iterator[Reloaded]:
    file = tmp_path / "k3dreg.toml"
    file.write_text(first)
    with running(engine, tmp_path, "--config", str(file), *EXPORTS_ONLY, log_level="") as daemon:
        yield Reloaded(daemon, file, RegistryClient(daemon.host))


@pytest.mark.parametrize("first", ["", NO_DELETING], ids=["on", "off"])
def test_deleting(daemon: Reloaded, first: str) -> None:
    def is_on() -> bool:
        blob = digest_of(b"")
        answers = {daemon.client.ask("DELETE", f"/v2/app/{what}").status for what in ("manifests/1", f"blobs/{blob}")}
        # What a 405 names is what there is.
        named = "DELETE" in daemon.client.ask("POST", "/v2/app/manifests/1").headers["allow"]
        assert answers == ({404} if named else {405})
        return named

    if first:
        daemon.check("REGISTRY_STORAGE_DELETE_ENABLED", "", NO_DELETING, is_on)
    else:
        daemon.check("REGISTRY_STORAGE_DELETE_ENABLED", NO_DELETING, "", lambda: not is_on())


def test_the_log_level(daemon: Reloaded) -> None:
    def is_logged() -> bool:
        since = len(daemon.daemon.log())
        asked = f"app-{uuid.uuid4()}"
        daemon.client.ask("POST", f"/v2/{asked}/manifests/1")
        daemon.client.ask("GET", "/healthz")
        return asked in daemon.daemon.log()[since:]

    assert is_logged()
    # At `warn` the log does not say what has changed, but what needs a restart.
    for level, wanted in (("warn", False), ("info", True), ("warn", False)):
        since = len(daemon.daemon.log())
        daemon.file.write_text(f'log-level = "{level}"\nlog-format = "json"')
        daemon.daemon.send(signal.SIGHUP)
        daemon.daemon.wait_for("to apply these changed settings: log-format", since=since)
        assert is_logged() is wanted


@pytest.mark.parametrize("first", ['cache-size = "3GB"'])
def test_the_size_of_the_cache(daemon: Reloaded, first: str) -> None:
    def is_on() -> bool:
        metrics = daemon.client.ask("GET", "/metrics").body.decode()
        [size] = [line.split()[1] for line in metrics.splitlines() if line.startswith("k3dreg_cache_limit_bytes ")]
        return float(size) == 4e9

    daemon.check("cache-size", 'cache-size = "4GB"', first, is_on)


def test_names_of_this_registry(daemon: Reloaded) -> None:
    daemon.client.push_image("app", "1")

    def is_on() -> bool:
        return daemon.client.ask("GET", "/v2/app/manifests/1?ns=other.invalid:5000").status == 200

    daemon.check("alias", 'alias = ["other.invalid:5000"]', "", is_on)


def test_registries_that_may_be_asked(engine: EngineAddress, tmp_path: Path) -> None:
    file = tmp_path / "k3dreg.toml"
    file.write_text("")
    with running(engine, tmp_path, "--config", str(file), *EXPORTS_ONLY, log_level="", registries="") as daemon:
        reloaded = Reloaded(daemon, file, RegistryClient(daemon.host))

        def is_on() -> bool:
            return reloaded.client.ask("GET", "/v2/app/manifests/1?ns=other.invalid:5000").status == 403

        reloaded.check("allow-registry", 'allow-registry = ["ghcr.io"]', "", is_on)


def test_the_fallback_to_the_origin(daemon: Reloaded, upstream: Upstream) -> None:
    def is_on() -> bool:
        # Another one each time: what was fetched is kept.
        repository = f"k3dreg-test/reload-{uuid.uuid4()}"
        config = b"{}"
        upstream.push_blob(repository, config)
        described = json.loads(manifest(config, (), annotations={"is": repository}))
        digest = upstream.push_manifest(repository, "1", described)["digest"]
        answer = daemon.client.ask("GET", f"/v2/{repository}/manifests/{digest}?ns={upstream.address}")
        assert answer.status in (200, 404)
        return answer.status == 200

    daemon.check("origin-fallback", "origin-fallback = true", "", is_on)


@pytest.mark.parametrize("first", ["status-page = false"])
def test_the_status_page(daemon: Reloaded, first: str) -> None:
    def is_on() -> bool:
        types = {daemon.client.ask("GET", "/", Accept="text/html").headers["content-type"].partition(";")[0]}
        style = daemon.client.ask("GET", "/status.css").status
        assert style == (200 if types == {"text/html"} else 404)
        return style == 200

    daemon.check("status-page", "status-page = true", first, is_on)


def test_passwords_and_who_needs_none(daemon: Reloaded, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(ANNA)
    asked = f'htpasswd = "{users}"'
    anna = "Basic " + base64.b64encode(b"anna:secret").decode()

    def statuses() -> tuple[int, int, int]:
        """Of reading and of pushing without a password, and of pushing with one."""
        read, write = ("GET", "/v2/_catalog"), ("POST", "/v2/app/blobs/uploads/")
        by_anna = daemon.client.ask(*write, b"", Authorization=anna)
        return daemon.client.ask(*read).status, daemon.client.ask(*write, b"").status, by_anna.status

    daemon.check("htpasswd", asked, "", lambda: statuses() == (401, 401, 202))
    daemon.set(asked)
    daemon.check("anonymous-pull", f"{asked}\nanonymous-pull = true", asked, lambda: statuses() == (200, 401, 202))
    daemon.set("")
    assert statuses() == (200, 202, 202)


def test_which_images_are_made_ready(engine: EngineAddress, daemon: Reloaded) -> None:
    docker, own = Docker(engine.socket), f"k3dreg-warm-{uuid.uuid4()}"
    one, other = (f'warm = ["{own}-{which}:*"]' for which in ("one", "other"))
    names: list[str] = []

    def is_one() -> bool:
        for which in ("other", "one"):
            names.append(f"{own}-{which}:{len(names)}")
            docker.build(names[-1], {"Dockerfile": b"FROM scratch\nCOPY x /\n", "x": uuid.uuid4().bytes})
        found = daemon.daemon.wait_for(f"made .*({names[-1]}|{names[-2]}) ready")
        return found[1] == names[-1]

    daemon.set(other)
    try:
        daemon.check("warm", one, other, is_one)
    finally:
        for name in names:
            docker.remove(name)


def test_the_daemon_takes_each_of_these_and_no_other(daemon: Reloaded) -> None:
    settings: dict[str, Any] = {"listen": ["tcp:1"], "docker": "unix:///x", "state-dir": "/x", "docker-root": "/x"}
    settings |= {
        "content-store": "/x",
        "reader": "stopped",
        "log-format": "json",
        "proxy-remote-url": "https://a.example",
    }
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    said = daemon.set(f'{text}\n[environment]\nAWS_PROFILE = "work"')
    assert "settings read again: nothing has changed" in said
    # The daemon's command line says `--docker`, `--listen`, `--reader` and `--state-dir`, which counts first.
    left = "content-store, docker-root, environment, log-format, proxy-remote-url"
    assert f"restart k3dreg to apply these changed settings: {left}\n" in said
