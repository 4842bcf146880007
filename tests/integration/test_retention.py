"""Rules of `--retain` on what was really pushed: over restarts, and with kills in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from k3dreg.formats import text
from tests.integration.support import rig
from tests.integration.support.clusters import build_node_image, running_kind_node
from tests.integration.support.daemon import Daemon, program, running
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.node import Node
from tests.integration.support.registry_client import RegistryClient, digest_of, index
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
MANY = 300


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(NOBODY, tmp_path) as daemon:
        yield daemon


def run(*words: str, status: int = 0, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run a command of k3dreg; return the lines that it prints."""
    done = subprocess.run(
        [*program(), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    print(done.stdout + done.stderr)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout.splitlines()


def layer_of(tag: str) -> bytes:
    return f"the layer of {tag} ".encode() * 1000


def push(client: RegistryClient, tag: str, repository: str = "app") -> bytes:
    return client.push_image(repository, tag, layer_of(tag))


def check_whole(client: RegistryClient, tag: str, repository: str = "app") -> None:
    """Pull all of it."""
    document = json.loads(client.get(f"/v2/{repository}/manifests/{tag}").body)
    for part in (document["config"], *document["layers"]):
        blob = client.get(f"/v2/{repository}/blobs/{part['digest']}")
        assert (blob.status, digest_of(blob.body)) == (200, part["digest"])


def tags_of(client: RegistryClient, repository: str = "app") -> list[str]:
    return sorted(client.get(f"/v2/{repository}/tags/list").json["tags"])


def file_of(state: Path, digest: str) -> Path:
    algorithm, _, digits = digest.partition(":")
    return state / "blobs" / algorithm / digits[:2] / digits


def test_rules_count_over_a_restart_and_free_what_only_the_old_tags_had(daemon: Daemon, tmp_path: Path) -> None:
    state = tmp_path / "state"
    client = RegistryClient(daemon.host)
    manifests = {tag: push(client, tag) for tag in ("v1", *(f"tilt-{number}" for number in range(5)))}
    # A node has pulled this one.
    assert client.get("/v2/app/manifests/tilt-1").status == 200
    dry = ["gc", "--state-dir", str(state), "--retain", "tilt-*=2", "--grace", "0", "--dry-run"]
    told = run(*dry)
    gone = ["tilt-2", "tilt-0"]
    size = sum(len(layer_of(tag)) + len(manifests[tag]) for tag in gone)
    assert told == [
        *(f"would remove app:{tag}: --retain tilt-*=2" for tag in gone),
        f"would remove 2 tags, 2 blobs and 2 manifests: 4 files, {text.size(size)}",
    ]
    assert "used by another k3dreg" in "".join(run_failing(*dry[:-1]))
    daemon.kill()
    assert run(*dry[:-1]) == [line.replace("would remove", "removed") for line in told]
    for _ in range(2):
        daemon.start()
        client = RegistryClient(daemon.host)
        assert tags_of(client) == ["tilt-1", "tilt-3", "tilt-4", "v1"]
        for tag in tags_of(client):
            check_whole(client, tag)
        for tag in gone:
            for reference in (tag, digest_of(manifests[tag])):
                assert client.get(f"/v2/app/manifests/{reference}").status == 404
            assert not file_of(state, digest_of(layer_of(tag))).exists()
        daemon.kill()
    daemon.start()


def into(node: Node, client: RegistryClient, tag: str) -> None:
    """Let the node hold a tag of `app`, as an image that it has not unpacked."""
    data = client.get(f"/v2/app/manifests/{tag}").body
    document = json.loads(data)
    blobs = [client.get(f"/v2/app/blobs/{part['digest']}").body for part in (document["config"], *document["layers"])]
    descriptor = {
        "mediaType": document["mediaType"],
        "digest": digest_of(data),
        "size": len(data),
        "annotations": {"io.containerd.image.name": f"example.com/app:{tag}"},
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode(),
        **{f"blobs/{digest_of(each).replace(':', '/')}": each for each in (data, *blobs)},
    }
    (node.address.chroot / "image.tar").write_bytes(build_context(files))
    node.ctr("images", "import", "--no-unpack", "/image.tar")


@pytest.fixture
def bridged() -> EngineAddress:
    """The engine in which commands run in containers: those in plain chroots do not find a container's files."""
    engine, _ = rig.bridged()
    build_node_image(engine, "default")
    return engine


def test_what_a_node_holds_stays_until_the_node_has_removed_it(bridged: EngineAddress, tmp_path: Path) -> None:
    docker, state = Docker(bridged.socket), tmp_path / "state"
    with running(NOBODY, tmp_path) as daemon, running_kind_node(docker, "bridge") as node:
        client = RegistryClient(daemon.host)
        for tag in ("1", "2", "3"):
            push(client, tag)
        into(node, client, "1")
        daemon.kill()
        with contextlib.closing(sqlite3.connect(state / "pushed.db")) as database, database:
            database.execute("UPDATE tag SET pulled=0")  # not within the last day
        gc = ("gc", "--state-dir", str(state), "--retain", "*=1", "--grace", "0")
        with_nodes = {"DOCKER_HOST": bridged.url}
        expected = "app:2: --retain *=1"
        assert run(*gc, "--dry-run", environment=with_nodes)[:-1] == [f"would remove {expected}"]
        assert run(*gc, environment=with_nodes)[:-1] == [f"removed {expected}"]
        # What the node held last counts while it does not tell, and without Docker.
        docker.ask("POST", f"/containers/{node.name}/pause")
        assert run(*gc, environment=with_nodes)[:-1] == []
        docker.ask("POST", f"/containers/{node.name}/unpause")
        assert run(*gc, environment={"DOCKER_HOST": NOBODY.url})[:-1] == []
        node.clean()
        assert run(*gc, environment=with_nodes)[:-1] == ["removed app:1: --retain *=1"]
        daemon.start()
        assert tags_of(RegistryClient(daemon.host)) == ["3"]


def run_failing(*words: str) -> list[str]:
    done = subprocess.run([*program(), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()


def count_tags(state: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{state}/pushed.db?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM tag").fetchone()[0])


def test_a_kill_in_the_middle_loses_nothing_but_what_the_rule_retires(daemon: Daemon, tmp_path: Path) -> None:
    client = RegistryClient(daemon.host, keep_alive=True)
    for number in range(MANY):
        push(client, f"tilt-{number:03}")
    push(client, "v1")
    daemon.kill()
    seen = set()
    for wanted in (MANY - 10, MANY // 2, 20):
        state = tmp_path / f"killed-{wanted}"
        shutil.copytree(tmp_path / "state", state)
        command = [*program(), "gc", "--state-dir", str(state), "--retain", "tilt-*=5", "--grace", "0"]
        collecting = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while collecting.poll() is None and count_tags(state) > wanted:
            time.sleep(0.0005)
        collecting.send_signal(signal.SIGKILL)
        collecting.wait()
        (tmp_path / f"log-{wanted}").mkdir()
        with running(NOBODY, tmp_path / f"log-{wanted}", state=state) as again:
            client = RegistryClient(again.host, keep_alive=True)
            left = tags_of(client)
            print(f"killed when {len(left)} tags were left")
            seen.add(len(left))
            newest = [f"tilt-{number:03}" for number in range(MANY - 5, MANY)]
            assert set(left) >= {*newest, "v1"}
            for tag in left:
                check_whole(client, tag)
            again.stop()
            for line in run(*command[len(program()) :]):
                assert line.startswith("removed ")
            again.start()
            client = RegistryClient(again.host)
            # Those that this test has pulled a moment ago stay.
            assert tags_of(client) == left
            for tag in left:
                check_whole(client, tag)
            for tag in (f"tilt-{number:03}" for number in range(MANY)):
                assert file_of(state, digest_of(layer_of(tag))).exists() == (tag in left), tag
    assert len(seen) > 1
    daemon.start()


def test_rm_asks_the_daemon_that_runs_and_works_without_one(daemon: Daemon, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    server = ("--server", f"http://{daemon.host}")
    client = RegistryClient(daemon.host)
    children = [push(client, "amd64", "multi"), push(client, "arm64", "multi")]
    assert client.push_manifest("multi", "all", index(children)).status == 201
    manifest = push(client, "1")
    push(client, "2")
    printed = run("rm", *server, "app:1", "multi:amd64", "app:nothing", f"{daemon.host}/app:2", status=1)
    assert printed[:2] == ["removed app:1", "removed multi:amd64"]
    assert "no tag nothing was pushed to app" in printed[2]
    assert printed[3:] == [f"removed {daemon.host}/app:2"]
    assert client.get(f"/v2/app/manifests/{digest_of(manifest)}").status == 404
    # The index leads to it.
    assert client.get(f"/v2/multi/manifests/{digest_of(children[0])}").status == 200
    # Without --server a daemon is found by the lock of the state directory, and its port by the settings.
    port = daemon.host.rpartition(":")[2]
    done = subprocess.run(
        [*program(), "rm", "--state-dir", state, "multi:arm64"],
        env={"K3DREG_LISTEN": f"tcp:{port}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "removed multi:arm64\n"), done.stderr
    daemon.kill()
    assert run("rm", "--state-dir", state, "multi:all")[0] == "removed multi:all"
    assert run("ls", "--state-dir", state) == ["nothing was pushed"]
    daemon.start()


def test_rm_says_that_deleting_is_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_STORAGE_DELETE_ENABLED", "false")
    with running(NOBODY, tmp_path) as daemon:
        push(RegistryClient(daemon.host), "1")
        [line] = run("rm", "--server", f"http://{daemon.host}", "app:1", status=1)
        assert "deleting is turned off" in line
