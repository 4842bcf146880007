"""`k3dreg doctor`: each check's verdict, with an engine in memory and real sockets and files."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from k3dreg import __version__
from k3dreg.commands.checks import FAIL, OK, WARN, Check, as_json, as_text, status_of
from k3dreg.commands.checks_engine import engine_checks
from k3dreg.commands.checks_machine import credential_helpers, socket_file, state_directory
from k3dreg.commands.checks_ports import port_of, try_endpoint
from k3dreg.commands.checks_reachability import reach_checks
from k3dreg.config.engine_address import EngineAddress
from k3dreg.config.options import Options
from k3dreg.docker.client import EngineClient
from k3dreg.docker.image import ImageStore
from k3dreg.engine_files.own_container import OwnContainer
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.workers import InlineWorkers

T = TypeVar("T")

REFUSED = 'Get "https://{}/v2/": dial tcp {}: connect: connection refused'
SPOKEN = 'Get "https://{}/v2/": tls: first record does not look like a TLS handshake'


class EngineCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.fake = FakeEngine(ImageStore.CONTAINERD)
        self.clock = Clock()
        self.engine: EngineClient = self.fake.client(self.clock)

    def done(self, coroutine: Coroutine[Any, Any, T]) -> T:
        asked = Deferred.fromCoroutine(coroutine)
        self.fake.flush()
        return self.successResultOf(asked)

    def look(self, *arguments: str, now: float = 0.0, container: str = "") -> dict[str, Check]:
        options = Options({"HOME": "/nowhere"})
        options.parseOptions(list(arguments))
        own = OwnContainer(container, reads_all=True) if container else None
        with mock.patch("k3dreg.commands.checks_engine.find_own_container", lambda: own):
            checks = self.done(engine_checks(options.config, self.engine, InlineWorkers(), now))
        return {check.name: check for check in checks}

    def reach(self, *aliases: str, answers: bool = True) -> list[Check]:
        return self.done(reach_checks(self.engine, aliases, "my-host", [5000], answers=answers))


class EngineTests(EngineCase):
    def test_a_working_engine_is_described(self) -> None:
        found = self.look()
        self.assertEqual(found["engine"].verdict, OK)
        self.assertIn("28.5.2", found["engine"].says)
        self.assertIn("API 1.51", found["engine"].says)
        self.assertEqual(found["image store"].verdict, OK)
        # There is no such directory on this machine: of an engine elsewhere, the line that would open it is there.
        self.assertIn("-v /var/lib/docker:/var/lib/docker:ro", found["source: the engine's files"].advice)
        self.assertEqual(found["source: reader containers"].verdict, OK)

    def test_what_the_user_chose_is_no_warning(self) -> None:
        found = self.look("--reader", "off")["source: reader containers"]
        self.assertEqual((found.verdict, found.says, found.advice), (OK, "off, as --reader says", ""))

    def test_in_a_container_files_need_not_be_mounted(self) -> None:
        found = self.look(container="c" * 64)["source: the engine's files"]
        self.assertEqual((found.verdict, found.advice), (OK, ""))
        self.assertIn("helper container passes them", found.says)
        found = self.look("--reader", "stopped", container="c" * 64)["source: the engine's files"]
        self.assertEqual(found.verdict, WARN)

    def test_a_classic_store_is_warned_of(self) -> None:
        self.fake.store = ImageStore.CLASSIC
        found = self.look()["image store"]
        self.assertEqual(found.verdict, WARN)
        self.assertIn("containerd-snapshotter", found.advice)

    def test_an_engine_that_is_away_is_the_only_thing_said_of_it(self) -> None:
        self.fake.down = True
        found = self.look()
        self.assertEqual(list(found), ["engine"])
        self.assertEqual((found["engine"].verdict, found["engine"].advice), (FAIL, "start Docker"))

    def test_an_engine_that_is_too_old_says_so(self) -> None:
        self.fake.api = "1.30"
        found = self.look()["engine"]
        self.assertEqual(found.verdict, FAIL)
        self.assertIn("1.41", found.says)

    def test_clocks_that_differ_are_warned_of(self) -> None:
        for time, verdict in (
            ("1970-01-01T00:16:40.123456789Z", OK),
            ("1970-01-01T01:16:40.5+01:00", OK),
            ("1970-01-01T00:20:00Z", WARN),
            ("nonsense", OK),
        ):
            self.fake.time = time
            self.assertEqual(self.look(now=1000.0)["clock"].verdict, verdict, time)


class ReachTests(EngineCase):
    def setUp(self) -> None:
        super().setUp()
        self.fake.others["/networks"] = [
            {"Name": "bridge", "IPAM": {"Config": [{"Gateway": "172.17.0.1"}]}},
            {"Name": "k3d-mine", "IPAM": {"Config": [{"Gateway": "fd00::1"}, {"Gateway": "172.18.0.1"}]}},
            {"Name": "someones", "IPAM": {"Config": [{"Gateway": "172.19.0.1"}]}},
            {"Name": "host", "IPAM": {"Config": None}},
        ]
        for host in ("localhost:5000", "172.17.0.1:5000", "172.18.0.1:5000"):
            self.answer(host, SPOKEN)

    def answer(self, host: str, text: str) -> None:
        self.fake.upstream[f"{host}/k3dreg-doctor:reach"] = PullError(500, text.format(host, host))

    def test_who_reaches_this_registry_and_by_which_names(self) -> None:
        names, *reached = self.reach("registry.example:5000")
        self.assertEqual((names.name, names.verdict), ("names", OK))
        self.assertIn("registry.example:5000, localhost:5000", names.says)
        self.assertIn("my-host:5000", names.says)
        self.assertEqual([check.verdict for check in reached], [OK, OK, OK])
        said = " ".join(check.says for check in reached)
        for what in ("Docker reaches localhost:5000", "bridge reaches 172.17.0.1", "k3d-mine reaches 172.18.0.1"):
            self.assertIn(what, said)
        self.assertNotIn("172.19.0.1", said)

    def test_a_network_that_does_not_reach_it_is_warned_of(self) -> None:
        self.answer("172.18.0.1:5000", REFUSED)
        found = [check for check in self.reach() if check.verdict != OK]
        self.assertEqual([(check.name, check.verdict) for check in found], [("reach", WARN)])
        self.assertIn("network k3d-mine does not reach 172.18.0.1:5000", found[0].says)
        self.assertIn("--listen tcp:5000", found[0].advice)

    def test_a_firewall_that_says_nothing_is_waited_for_a_while(self) -> None:
        self.fake.others["/networks"] = []
        self.fake.silent.add("localhost:5000/k3dreg-doctor:reach")
        asked = Deferred.fromCoroutine(reach_checks(self.engine, (), "my-host", [5000], answers=True))
        self.fake.flush()
        self.assertNoResult(asked)
        self.clock.advance(10)
        self.assertEqual([check.verdict for check in self.successResultOf(asked)], [OK, WARN])

    def test_in_a_container_its_published_port_counts(self) -> None:
        self.fake.others["/containers/my-host/json"] = {
            "Name": "/k3d-registry",
            "Config": {"Hostname": "my-host", "Labels": {}},
            "NetworkSettings": {"Ports": {"5000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "5005"}]}, "Networks": {}},
        }
        self.answer("localhost:5005", SPOKEN)
        names, *reached = self.reach()
        self.assertIn("k3d-registry:5000", names.says)
        self.assertIn("localhost:5005", names.says)
        self.assertEqual([check.says for check in reached], ["Docker reaches localhost:5005"])

    def test_an_engine_whose_mirror_this_is_is_warned_of(self) -> None:
        for mirrors, warned in (
            (("https://mirror.example/", "http://localhost:5000/"), True),
            (("http://registry.example:5000",), True),
            (("http://localhost:5001/", "mirror", ""), False),
        ):
            self.fake.mirrors, self.engine = mirrors, self.fake.client(self.clock)
            found = [check for check in self.reach("registry.example:5000") if check.name == "mirror"]
            self.assertEqual([check.verdict for check in found], [WARN] if warned else [])

    def test_nobody_is_asked_when_nobody_would_answer(self) -> None:
        before = len(self.fake.distributions)
        checks = self.reach(answers=False)
        self.assertEqual([check.verdict for check in checks], [OK, WARN])
        self.assertEqual(len(self.fake.distributions), before)

    def test_podman_is_not_asked(self) -> None:
        self.fake.store = ImageStore.PODMAN
        self.assertEqual([check.verdict for check in self.reach()], [OK, OK])
        self.assertEqual(self.fake.distributions, [])

    def test_an_engine_that_goes_away_meanwhile_is_no_fault_of_the_doctors(self) -> None:
        self.fake.down = True
        [check] = self.reach()
        self.assertEqual(check.verdict, WARN)


class Named(Resource):
    """An HTTP server that calls itself something."""

    isLeaf = True  # noqa: N815  (Twisted's)

    def __init__(self, name: bytes) -> None:
        super().__init__()
        self._name = name

    def render(self, request: Any) -> bytes:
        request.setHeader(b"Server", self._name)
        return b""


class DoorTests(TestCase):
    async def serve(self, name: bytes) -> int:
        site = Site(Named(name))
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def test_a_free_port_is_answered_on_until_it_is_closed(self) -> None:
        door = await try_endpoint("tcp:0:interface=127.0.0.1", reactor)
        self.assertEqual((door.check.verdict, door.check.says, door.answers), (OK, "free", True))
        assert door.close is not None
        await door.close()
        self.assertEqual(door.port, 0, "no port in particular was asked for")

    async def test_k3dreg_itself_may_have_it(self) -> None:
        port = await self.serve(b"k3dreg/7.8.9")
        door = await try_endpoint(f"tcp:{port}:interface=127.0.0.1", reactor)
        self.assertEqual((door.check.verdict, door.answers, door.port), (OK, True, port))
        self.assertIn("k3dreg 7.8.9 listens", door.check.says)

    async def test_another_program_may_not(self) -> None:
        port = await self.serve(b"nginx")
        door = await try_endpoint(f"tcp:{port}:interface=127.0.0.1", reactor)
        self.assertEqual((door.check.verdict, door.answers), (FAIL, False))

    async def test_an_address_that_is_not_this_machines_fails(self) -> None:
        door = await try_endpoint("tcp:0:interface=192.0.2.1", reactor)
        self.assertEqual(door.check.verdict, FAIL)
        self.assertIsNone(door.close)


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("tcp:5000", 5000),
        ("tcp:5001:interface=127.0.0.1", 5001),
        ("tcp:port=5002", 5002),
        (r"tcp6:5003:interface=\:\:1", 5003),
        ("ssl:5004:privateKey=a:certKey=b", 5004),
        ("unix:/run/k3dreg.sock", 0),
        ("systemd:domain=INET:index=0", 0),
    ],
)
def test_the_port_of_an_endpoint(endpoint: str, port: int) -> None:
    assert port_of(endpoint) == port


def test_the_engines_socket_is_looked_at() -> None:
    # A UNIX socket's path has 107 bytes at most, and pytest's directories are long.
    directory = Path(tempfile.mkdtemp())
    try:
        path = directory / "docker.sock"
        assert socket_file(EngineAddress(path=str(path))).verdict == FAIL
        path.write_text("")
        assert "not a socket" in socket_file(EngineAddress(path=str(path))).says
        path.unlink()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            path.chmod(0o600)
            found = socket_file(EngineAddress(path=str(path)))
        assert found.verdict == OK
        assert "srw-------" in found.says
    finally:
        shutil.rmtree(directory)
    assert socket_file(EngineAddress(host="engine.example", port=2376)).verdict == OK


def test_the_state_directory_needs_room(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "made"
    assert state_directory(directory, 1).verdict == OK
    assert not directory.exists()
    found = state_directory(directory, 1 << 60)
    assert (found.verdict, "--cache-size" in found.advice) == (WARN, True)
    (tmp_path / "file").write_text("")
    assert state_directory(tmp_path / "file" / "below", 1).verdict == FAIL


def test_what_is_kept_counts_as_room(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "sha256" / "00" / "x"
    blob.parent.mkdir(parents=True)
    with blob.open("wb") as file:
        file.truncate(1 << 42)
    assert state_directory(tmp_path, 1 << 42).verdict == OK


def test_helpers_that_docker_names_have_to_be_there(tmp_path: Path) -> None:
    def look(text: str | None) -> Check:
        file = tmp_path / "config.json"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        return credential_helpers({"DOCKER_CONFIG": str(tmp_path), "PATH": str(tmp_path)})

    assert look(None).verdict == OK
    assert look("{").verdict == FAIL
    assert look("{}").verdict == OK
    told = json.dumps({"credsStore": "desktop", "credHelpers": {"a.example": "ecr-login"}})
    missing = look(told)
    assert missing.verdict == FAIL
    assert "docker-credential-desktop, docker-credential-ecr-login" in missing.says
    for name in ("desktop", "ecr-login"):
        helper = tmp_path / f"docker-credential-{name}"
        helper.write_text("")
        helper.chmod(0o755)
    assert look(told).verdict == OK


def test_the_status_and_the_texts() -> None:
    good, poor, bad = (Check(verdict, verdict, "seen", "do it") for verdict in (OK, WARN, FAIL))
    assert (status_of([good, poor]), status_of([good, bad])) == (0, 1)
    assert as_text([bad]) == "fail  fail: seen\n      do it"
    told = json.loads(as_json([good, bad]))
    assert (told["ok"], told["version"]) == (False, __version__)
    assert told["checks"][1] == {"name": FAIL, "verdict": FAIL, "says": "seen", "advice": "do it"}
