"""k3dreg as a service of a real systemd, installed as docs/systemd.md says."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.integration.conftest import Push, PushedImage
from tests.integration.support import rig
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import MB, small_layers
from tests.integration.support.machine import Machine, booted
from tests.integration.support.puller import Puller

pytestmark = pytest.mark.engines("docker29")

DOCUMENTATION = (rig.REPOSITORY / "docs/systemd.md").read_text()
CLONE = "/srv/k3dreg"
SETTINGS = "/etc/k3dreg/k3dreg.toml"


def steps(heading: str) -> str:
    """The first commands that the documentation has after these words."""
    found = re.search(r"```sh\n(.*?)```", DOCUMENTATION[DOCUMENTATION.index(heading) :], re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def machine(engine: rig.EngineAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One with Docker's socket and directories, and nothing of k3dreg but a clone of its repository."""
    directory = tmp_path_factory.mktemp("machine")
    data = engine.directory / "data"
    inside = Docker(engine.socket).ask("GET", "/info")["DockerRootDir"]
    with booted(directory, {Path(engine.socket): "/run/docker.sock", data: inside}) as machine:
        shutil.copytree(rig.REPOSITORY, f"{machine.root}{CLONE}", ignore=shutil.ignore_patterns(".*", "build", "tests"))
        yield machine


@pytest.fixture(scope="module")
def service(machine: Machine, engine: rig.EngineAddress) -> Machine:
    """Installed, on a port of this test's own."""
    machine.run(f"groupadd --non-unique --gid {os.stat(engine.socket).st_gid} docker || true")
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    machine.write("/etc/systemd/system/k3dreg.socket.d/port.conf", f"[Socket]\nListenStream=\nListenStream={port}")
    # How pip reaches the package index from here.
    reaching = ("pip_", "http_proxy", "https_proxy", "no_proxy", "ssl_cert_", "requests_ca_")
    installing = {name: value for name, value in os.environ.items() if name.lower().startswith(reaching)}
    try:
        machine.run(f"cd {CLONE}\n{steps('## Install')}", environment=installing)
    except AssertionError as error:
        raise AssertionError(f"{error}\nand the service's log has:\n{machine.log('k3dreg.service')}") from error
    return machine


@pytest.fixture
def host(service: Machine) -> str:
    """Where it listens."""
    number = re.search(r"Listen=\[::\]:(\d+)", service.run("systemctl show -p Listen k3dreg.socket"))
    assert number
    return f"127.0.0.1:{number[1]}"


def test_it_runs_as_nobody_in_particular_and_says_which_engine_it_uses(service: Machine, host: str) -> None:
    service.wait_for("k3dreg.service", "images come from Docker 29")
    assert service.show("k3dreg.service", "StatusText").startswith("images come from Docker 29")
    pid = service.show("k3dreg.service", "MainPID")
    status = service.run(f"cat /proc/{pid}/status")
    user = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert user
    assert int(user[1]) > 60_000
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert "plugin cache" not in service.log("k3dreg.service")


def test_units_are_what_systemd_can_use_and_the_service_is_little_exposed(service: Machine) -> None:
    service.run("systemd-analyze verify k3dreg.service k3dreg.socket")
    for drop_ins, most in (("", 15), ("-d", 20)):  # tenths of a point, of the 100 that are the worst
        service.run(f"rm -rf /tmp/units && mkdir /tmp/units && cp {CLONE}/systemd/k3dreg.s*e /tmp/units")
        service.run(f"[ -z '{drop_ins}' ] || cp -r {CLONE}/systemd/k3dreg.service.d /tmp/units")
        analyze = f"systemd-analyze security --no-pager --offline=true --threshold={most} /tmp/units/k3dreg.service"
        print(service.run(analyze).strip().splitlines()[-1])


def test_images_are_pulled_through_it(
    service: Machine, host: str, engine: rig.EngineAddress, small_image: PushedImage
) -> None:
    docker = small_image.pull_into(engine)
    # As all that it may use is the socket, it reads Docker's files through that.
    assert "k3dreg cannot read them from here" in status_page(host)
    assert Puller(host, small_image.registry).image(small_image.repository, "1") > 0
    docker.remove(small_image.name)


def test_nobody_is_refused_while_it_is_restarted_or_not_there(service: Machine, host: str) -> None:
    restarted = Event()

    def keep_asking(_: int) -> list[int]:
        answers = [ping(host)]
        while not restarted.is_set():
            answers.append(ping(host))
        return answers

    with ThreadPoolExecutor(4) as threads:
        asking = threads.map(keep_asking, range(4))
        try:
            service.run("systemctl restart k3dreg.service")
        finally:
            restarted.set()
        assert {status for answers in asking for status in answers} == {200}
    service.run("systemctl stop k3dreg.service")
    assert service.show("k3dreg.service", "Result") == "success"
    assert service.show("k3dreg.service", "ActiveState") == "inactive"
    assert ping(host) == 200
    assert service.show("k3dreg.service", "ActiveState") == "active"


def test_a_pull_under_way_does_not_notice_that_settings_are_read_again(
    service: Machine, host: str, engine: rig.EngineAddress, layered_image: PushedImage
) -> None:
    docker = layered_image.pull_into(engine)
    puller = Puller(host, layered_image.registry)
    digest, size = max(puller.layers(layered_image.repository, "1"), key=lambda part: part[1])
    assert size > 32 * MB

    def reload() -> None:
        service.write(SETTINGS, "cache-sise = 1")
        service.run("systemctl reload k3dreg")
        service.wait_for("k3dreg.service", "the settings were not changed:")
        assert "there is no option 'cache-sise'" in service.show("k3dreg.service", "StatusText")
        service.write(SETTINGS, 'cache-size = "1GB"')
        service.run("systemctl reload k3dreg")
        service.wait_for("k3dreg.service", "settings read again: changed cache-size")
        assert service.show("k3dreg.service", "StatusText").startswith("images come from")
        assert f"blob {digest[:19]} 200" not in service.log("k3dreg.service"), "it was not under way"

    assert puller.blob(layered_image.repository, digest, size, halfway=reload) == size
    assert service.show("k3dreg.service", "ActiveState") == "active"
    docker.remove(layered_image.name)


def test_what_a_daemon_of_roots_kept_is_the_services(service: Machine, host: str) -> None:
    service.run("systemctl stop k3dreg.service k3dreg.socket")
    # As it is left by the first command of the README.
    service.run("rm /var/lib/k3dreg && mv /var/lib/private/k3dreg /var/lib/k3dreg && chown -R root: /var/lib/k3dreg")
    identity = service.run("cat /var/lib/k3dreg/identity")
    service.run("systemctl start k3dreg.socket k3dreg.service")
    assert ping(host) == 200
    assert service.run("cat /var/lib/k3dreg/identity") == identity
    assert service.run("stat -c %u /var/lib/k3dreg/identity").strip() != "0"


def test_a_daemon_whose_loop_stands_still_is_started_anew(service: Machine, host: str) -> None:
    service.write("/run/systemd/system/k3dreg.service.d/soon.conf", "[Service]\nWatchdogSec=1s")
    service.run("systemctl daemon-reload && systemctl restart k3dreg.service")
    # While it is well, it is left alone for longer than that.
    service.run("sleep 2")
    before = service.show("k3dreg.service", "MainPID")
    assert service.show("k3dreg.service", "NRestarts") == "0"
    service.run(f"kill -STOP {before}")
    service.wait_for("k3dreg.service", "Watchdog timeout")
    service.wait_for("k3dreg.service", "Scheduled restart job")
    assert ping(host) == 200
    assert service.show("k3dreg.service", "MainPID") != before


def test_with_the_drop_in_dockers_files_are_read_in_place(
    service: Machine, host: str, engine: rig.EngineAddress, push: Push, busybox: bytes
) -> None:
    images = [push(f"k3dreg-test/{word}-drop-in", small_layers(busybox, word), word) for word in ("without", "with")]
    for image in images:
        image.pull_into(engine)
    # Where neither they nor containers can be used, images come out of exports.
    service.write(SETTINGS, "reader = false")
    service.run("systemctl restart k3dreg.service")
    assert "k3dreg cannot read them from here" in status_page(host)
    assert Puller(host, images[0].registry).image(images[0].repository, "1") > 0
    # Where the client is slow, the export has ended and its blobs are in the cache.
    assert re.search(r"/without-drop-in blob \S+ 200 (export|cache)", service.log("k3dreg.service"))
    service.run(f"cd {CLONE}\n{steps('files in place')}")
    assert "k3dreg cannot read them from here" not in status_page(host)
    assert Puller(host, images[1].registry).image(images[1].repository, "1") > 0
    assert re.search(r"/with-drop-in blob \S+ 200 content", service.log("k3dreg.service"))
    for image in images:
        image.remove_from(engine)


def ping(host: str) -> int:
    """The status of the answer to the smallest request there is, on a connection of its own."""
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status
    finally:
        connection.close()


def status_page(host: str) -> str:
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/", headers={"Accept": "text/html"})
    return connection.getresponse().read().decode()
