"""`k3dreg doctor`, `why` and `warm` as commands, with engines in good and in broken states."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from attrs import frozen

from tests.integration.conftest import PushedImage
from tests.integration.support import rig
from tests.integration.support.daemon import REGISTRIES, Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.losing import lose_blobs
from tests.integration.support.private import PrivateUpstream, push_small_image
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream

NOBODY = 65534
LIKE_ANYBODY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


@frozen
class Said:
    """What a command printed, and how it ended."""

    status: int
    out: str
    err: str


def k3dreg(*arguments: str, before: Sequence[str] = (), **environment: str) -> Said:
    """The command installed beside this Python, with `before` put before it, and a home that nobody has used."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("K3DREG_", "DOCKER_"))}
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [*before, str(Path(sys.executable).with_name("k3dreg")), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**clean, "HOME": home, "K3DREG_ALLOW_REGISTRY": REGISTRIES, **environment},
            # What is installed is what runs.
            cwd="/",
        )
    return Said(done.returncode, done.stdout, done.stderr)


def doctor(engine: EngineAddress | str, *options: str, before: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
    """The status, and the checks by name."""
    url = engine if isinstance(engine, str) else engine.url
    with tempfile.TemporaryDirectory() as state:
        said = k3dreg("doctor", "--json", "--docker", url, "--state-dir", f"{state}/k3dreg", *options, before=before)
        assert not list(Path(state).iterdir()), "nothing is changed"
    assert said.err == ""
    told = json.loads(said.out)
    assert told["ok"] is (said.status == 0)
    assert {check["verdict"] for check in told["checks"]} <= {"ok", "warn", "fail"}
    return said.status, {check["name"]: check for check in told["checks"]}


@pytest.fixture
def free() -> Iterator[str]:
    """An endpoint on which nothing listens; the doctor itself tries it, so only one may at a time."""
    with rig.alone("port-5996"):
        yield "tcp:5996:interface=127.0.0.1"


# -- doctor -----------------------------------------------------------------------------------------


def test_the_doctor_finds_a_working_engine_well(engine: EngineAddress, free: str) -> None:
    status, checks = doctor(engine, "--listen", free, "--alias", "registry.example:5000")
    assert status == 0, checks
    store = "ok" if engine.containerd_store else "warn"
    expected = {"socket": "ok", "engine": "ok", "image store": store, "clock": "ok", "state directory": "ok"}
    expected |= {f"port: {free}": "ok", "names": "ok", "reach": "ok", "source: reader containers": "ok"}
    assert {name: checks[name]["verdict"] for name in expected} == expected
    assert "API 1." in checks["engine"]["says"]
    assert engine.socket in checks["socket"]["says"]
    assert "registry.example:5000, localhost:5996" in checks["names"]["says"]
    # Docker itself made a connection to the port.
    assert checks["reach"]["says"] == "Docker reaches localhost:5996"
    # The chroots of the engines are not where the engines believe them to be.
    assert checks["source: the engine's files"]["advice"].startswith("run k3dreg as root on the engine's machine, or")


@pytest.mark.engines("docker29")
def test_the_doctor_knows_k3dreg_where_it_runs(engine: EngineAddress, daemon: Daemon) -> None:
    port = daemon.host.rpartition(":")[2]
    endpoint = f"tcp:{port}:interface=127.0.0.1"
    status, checks = doctor(engine, "--listen", endpoint)
    assert status == 0
    assert checks[f"port: {endpoint}"]["says"].startswith("k3dreg ")
    assert checks["reach"]["says"] == f"Docker reaches localhost:{port}"
    # It was asked for an image that is not there, and answered as a registry does.
    daemon.wait_for("HEAD k3dreg-doctor:reach 404|GET k3dreg-doctor:reach 404")
    daemon.check_log()


@pytest.mark.engines("docker29")
def test_the_doctor_finds_the_address_that_containers_do_not_reach(engine: EngineAddress, free: str) -> None:
    docker = Docker(engine.socket)
    body = json.dumps({"Name": "k3d-doctor", "Driver": "bridge"})
    docker.call("POST", "/networks/create", body=body, content_type="application/json")
    try:
        status, checks = doctor(engine, "--listen", free)
        assert (status, checks["reach"]["verdict"]) == (0, "warn")
        assert "network k3d-doctor does not reach" in checks["reach"]["says"]
        assert "--listen tcp:5996" in checks["reach"]["advice"]
        status, checks = doctor(engine, "--listen", "tcp:5996")
        assert (status, checks["reach"]["verdict"]) == (0, "ok")
        assert "network k3d-doctor reaches" in checks["reach"]["says"]
    finally:
        docker.call("DELETE", "/networks/k3d-doctor")


@pytest.mark.engines("docker29-spare")
def test_the_doctor_warns_of_an_engine_whose_own_mirror_this_is(engine: EngineAddress, free: str) -> None:
    with rig.mirrors(engine, "http://localhost:5996"):
        status, checks = doctor(engine, "--listen", free)
    assert (status, checks["mirror"]["verdict"]) == (0, "warn")
    assert "localhost:5996" in checks["mirror"]["says"]
    assert "mirror" not in doctor(engine, "--listen", free)[1]


def test_the_doctor_without_a_socket_says_what_to_do(free: str) -> None:
    status, checks = doctor("unix:///run/no-engine.sock", "--listen", free)
    assert status == 1
    assert checks["socket"]["verdict"] == checks["engine"]["verdict"] == "fail"
    assert "does not exist" in checks["engine"]["says"]
    assert "start Docker" in checks["engine"]["advice"]
    # The rest is looked at all the same.
    assert checks["state directory"]["verdict"] == checks[f"port: {free}"]["verdict"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be less than it is")
@pytest.mark.engines("docker29-spare")
def test_the_doctor_where_the_socket_may_not_be_used(engine: EngineAddress, free: str) -> None:
    """As a root that has to keep to permissions, with a socket that is somebody else's."""
    before = os.stat(engine.socket)
    os.chown(engine.socket, NOBODY, NOBODY)
    os.chmod(engine.socket, 0o600)
    try:
        status, checks = doctor(engine, "--listen", free, before=LIKE_ANYBODY)
        why = k3dreg("why", "--docker", engine.url, "nginx", before=LIKE_ANYBODY)
    finally:
        os.chown(engine.socket, before.st_uid, before.st_gid)
        os.chmod(engine.socket, before.st_mode & 0o777)
    assert status == why.status == 1
    assert checks["socket"]["verdict"] == checks["engine"]["verdict"] == "fail"
    assert "srw------- nobody:nogroup, which root may not use" in checks["socket"]["says"]
    assert "group nogroup" in checks["socket"]["advice"]
    assert "permission to its socket is denied" in checks["engine"]["says"]
    assert "permission to its socket is denied" in why.out


@pytest.mark.engines("docker29-spare")
def test_the_doctor_of_an_engine_that_was_stopped(engine: EngineAddress, free: str) -> None:
    rig.kill_engine(engine)
    try:
        status, checks = doctor(engine, "--listen", free)
        said = k3dreg("why", "--docker", engine.url, "nginx")
    finally:
        rig.start_engine(engine)
    assert status == 1
    assert checks["engine"]["verdict"] == "fail"
    assert checks["engine"]["says"].endswith("refuses connections")
    assert checks["engine"]["advice"] == "start Docker"
    assert said.status == 1
    assert "start Docker\nthe answer is 503" in said.out
    assert doctor(engine, "--listen", free)[0] == 0


# -- why --------------------------------------------------------------------------------------------


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
def test_why_of_an_image_that_docker_has_that_its_registry_has_and_that_nobody_has(
    engine: EngineAddress, small_image: PushedImage
) -> None:
    docker = small_image.pull_into(engine)
    held = k3dreg("why", "--docker", engine.url, small_image.name)
    assert (held.status, held.err) == (0, "")
    assert f"the engine has {small_image.name}" in held.out
    by_digest = f"{small_image.registry}/{small_image.repository}@{small_image.manifest['digest']}"
    asked = k3dreg("why", "--docker", engine.url, by_digest)
    assert asked.status == (0 if engine.containerd_store else 1)
    assert engine.containerd_store or "keeps no registry manifests" in asked.out
    docker.remove(small_image.name)
    upstream = k3dreg("why", "--docker", engine.url, small_image.name)
    assert upstream.status == 0, upstream.out
    assert f"has it: {small_image.manifest['digest']}" in upstream.out
    assert docker.inspect(small_image.name) is None, "nothing is pulled"
    nowhere = k3dreg("why", "--docker", engine.url, f"{small_image.registry}/k3dreg-test/nowhere:1")
    assert nowhere.status == 1
    assert "the answer is 404" in nowhere.out


@pytest.mark.engines("docker29", "docker29-classic")
def test_why_of_a_private_image(engine: EngineAddress, tmp_path: Path) -> None:
    private = PrivateUpstream()
    image = push_small_image(private, "why")
    without = k3dreg("why", "--docker", engine.url, image.name)
    assert without.status == 1
    assert f"k3dreg has no credentials for {image.registry}" in without.out
    assert "the answer is 401" in without.out
    login = private.authorization.removeprefix("Basic ")
    (tmp_path / "config.json").write_text(json.dumps({"auths": {image.registry: {"auth": login}}}))
    logged_in = k3dreg("why", "--docker", engine.url, image.name, DOCKER_CONFIG=str(tmp_path))
    assert logged_in.status == 0, logged_in.out
    assert f"k3dreg has credentials for {image.registry}" in logged_in.out
    assert private.password not in logged_in.out.replace(image.name, "")
    assert login not in logged_in.out


@pytest.mark.engines("docker29")
def test_why_of_an_image_of_which_docker_has_lost_blobs(engine: EngineAddress, upstream: Upstream) -> None:
    docker = Docker(engine.socket)
    image = push_small_image(upstream, "why")
    lose_blobs(docker, image)
    said = k3dreg("why", "--docker", engine.url, image.name)
    docker.remove(image.name)
    assert "Docker has lost blobs of it (moby#49473)" in said.out
    assert (said.status, "repairs it" in said.out) == (0, True)


@pytest.mark.engines("docker29")
def test_why_of_what_was_pushed(
    engine: EngineAddress, daemon: Daemon, upstream: Upstream, busybox: bytes, tmp_path: Path
) -> None:
    pushed = push_small_image(Upstream(daemon.host), "why")
    state = Path(daemon.wait_for(r"state in (\S+)")[1])
    port = daemon.host.rpartition(":")[2]
    words = ["why", "--docker", engine.url, "--state-dir", str(state), "--listen", f"tcp:{port}"]
    said = k3dreg(*words, f"localhost:{port}/{pushed.repository}:1")
    assert (said.status, said.err) == (0, "")
    assert f"it was pushed here: a node gets {pushed.digest}" in said.out
    absent = k3dreg(*words, f"localhost:{port}/{pushed.repository}:2")
    assert absent.status == 1
    assert "and it was not pushed here" in absent.out


# -- warm -------------------------------------------------------------------------------------------


@pytest.mark.engines("docker29")
def test_warm_makes_images_ready(engine: EngineAddress, daemon: Daemon, small_image: PushedImage) -> None:
    docker = small_image.remove_from(engine)
    server = f"http://{daemon.host}"
    nowhere = f"{small_image.registry}/k3dreg-test/nowhere:1"
    said = k3dreg("warm", "--server", server, small_image.name, nowhere)
    ready, failed = said.out.splitlines()
    assert said.status == 1
    assert ready.startswith(f"{small_image.name}: ready, 1.")
    assert failed.startswith(f"{nowhere}: ")
    assert docker.inspect(small_image.name) is not None
    assert k3dreg("warm", "--server", server, small_image.name).status == 0
    daemon.check_log()


@pytest.mark.engines("docker29")
def test_warm_logs_in_as_docker_login_left_it(engine: EngineAddress, small_image: PushedImage, tmp_path: Path) -> None:
    small_image.pull_into(engine)
    users, login = tmp_path / "users", tmp_path / "config.json"
    users.write_bytes(b"anna:" + bcrypt.hashpw(b"right", bcrypt.gensalt(4)) + b"\n")
    with running(engine, tmp_path, "--htpasswd", str(users)) as daemon:
        words = ("warm", "--server", f"http://{daemon.host}", small_image.name)
        said = k3dreg(*words, DOCKER_CONFIG=str(tmp_path))
        assert (said.status, said.out) == (
            1,
            f"the k3dreg at {daemon.host} asks for a password. docker login {daemon.host}\n",
        )
        for password, status in (("wrong", 1), ("right", 0)):
            pair = base64.b64encode(f"anna:{password}".encode()).decode()
            login.write_text(json.dumps({"auths": {daemon.host: {"auth": pair}}}))
            said = k3dreg(*words, DOCKER_CONFIG=str(tmp_path))
            assert said.status == status
            assert ("does not accept the user anna" in said.out, "ready" in said.out) == (status == 1, status == 0)
            assert password not in said.out.replace("password", "")


def test_warm_without_a_k3dreg_says_so() -> None:
    said = k3dreg("warm", "--server", "http://127.0.0.1:1", "nginx")
    assert (said.status, said.err) == (1, "")
    assert "no k3dreg at http://127.0.0.1:1" in said.out


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script: Debian's bsdutils")
@pytest.mark.engines("docker29")
def test_warm_draws_a_bar_on_a_terminal(engine: EngineAddress, daemon: Daemon, small_image: PushedImage) -> None:
    small_image.pull_into(engine)
    command = f"{Path(sys.executable).with_name('k3dreg')} warm --server http://{daemon.host} {small_image.name}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert f"{small_image.name}: [##############################]" in done.stdout
    assert done.stdout.rstrip().endswith("MB")


# -- wrong options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "nginx"],
        ["doctor", "--nonsense"],
        ["why"],
        ["why", "a", "b"],
        ["why", "UPPER"],
        ["why", "--docker", "gopher://x", "nginx"],
        ["warm"],
        ["warm", "--server"],
    ],
)
def test_wrong_options_are_a_line_and_status_2(arguments: list[str]) -> None:
    said = k3dreg(*arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("k3dreg: ")
    assert f"Usage: k3dreg {arguments[0]}" in said.err
    assert "Traceback" not in said.err
