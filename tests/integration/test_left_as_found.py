"""What k3dreg leaves in somebody's Docker: nothing; and what another storage driver costs: an export."""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support.daemon import running
from tests.integration.support.docker_api import Docker, DockerError
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress


def _found(docker: Docker) -> dict[str, Any]:
    """All that a user of the engine sees of it, but for times."""

    def ask(path: str) -> Any:
        # An engine with the containerd store fails to sum up sizes ("snapshot … does not exist", "rw layer snapshot not
        # found …", "content digest … not found") while any container or image is made or removed, as k3dreg's are: it
        # is asked again, as a person would.
        end = time.monotonic() + 10
        while True:
            try:
                return json.loads(docker.call("GET", path))
            except DockerError as error:
                if not re.search("snapshot|content digest", str(error)) or time.monotonic() > end:
                    raise

    usage = ask("/system/df")
    return {
        "images": sorted(
            (i["Id"], sorted(i["RepoTags"] or []), sorted(i["RepoDigests"] or []), i["Size"])
            for i in ask("/images/json?all=1")
        ),
        "containers": sorted((c["Id"], c["Names"], c["State"]) for c in ask("/containers/json?all=1")),
        "volumes": sorted(volume["Name"] for volume in ask("/volumes")["Volumes"] or []),
        "networks": sorted(network["Id"] for network in ask("/networks")),
        "bytes of layers": usage.get("LayersSize"),
        "build cache": sorted(each["ID"] for each in usage.get("BuildCache") or []),
    }


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
def test_an_engine_is_left_as_it_was_found(
    engine: EngineAddress, options: tuple[str, ...], small_image: PushedImage, tmp_path: Path
) -> None:
    docker = small_image.pull_into(engine)
    before = _found(docker)
    with running(engine, tmp_path, *options) as daemon:
        puller = Puller(daemon.host, small_image.registry)
        assert puller.image(small_image.repository, small_image.tag) > 0
        assert puller.manifest("k3dreg-test/nonesuch", "1").status == 404
        during = _found(docker)
        added = [container for container in during["containers"] if container not in before["containers"]]
        assert {state for _, _, state in added} <= {"created"}
        # Containers that are never started have layers of some KiB, and an image of nothing.
        for what in ("volumes", "networks", "build cache"):
            assert during[what] == before[what]
        # One that was killed finds what it left, and takes it along when it ends as it should.
        daemon.kill()
        daemon.start()
        assert Puller(daemon.host, small_image.registry).image(small_image.repository, small_image.tag) > 0
    # The containerd store collects what was removed in its own time.
    end = time.monotonic() + 10
    while _found(docker) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert _found(docker) == before


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
def test_images_that_an_earlier_version_left_are_removed_at_the_start(engine: EngineAddress, tmp_path: Path) -> None:
    docker = Docker(engine.socket)

    def leave(repository: str, owner: str) -> str:
        """Import an empty image as k3dreg does; its name."""
        tag = f"{owner[:8]}-{uuid.uuid4().hex}"
        labels = f"LABEL k3dreg.role=probe k3dreg.owner={owner}"
        query = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": labels}
        empty = bytes(1024)
        docker.progress("POST", "/images/create", body=empty, query=query, content_type="application/x-tar")
        return f"{repository}:{tag}"

    left: list[str] = []
    try:
        with running(engine, tmp_path) as daemon:
            daemon.stop()
            (identity,) = tmp_path.rglob("identity")
            left += [leave(repository, identity.read_text()) for repository in ("k3dreg-probe", "k3dreg-hands-over")]
            in_use = leave("k3dreg-probe", uuid.uuid4().hex[:16])
            left.append(in_use)
            daemon.start()
            end = time.monotonic() + 10
            while [name for name in left if docker.inspect(name)] != [in_use]:
                assert time.monotonic() < end
                time.sleep(0.1)
    finally:
        for name in left:
            docker.remove(name)


@pytest.mark.engines("docker29-classic-spare-vfs")
def test_of_another_storage_driver_images_are_exported(
    engine: EngineAddress, small_image: PushedImage, tmp_path: Path
) -> None:
    docker = small_image.pull_into(engine)
    began = time.time()
    with running(engine, tmp_path) as daemon:
        assert Puller(daemon.host, small_image.registry).image(small_image.repository, small_image.tag) > 0
        daemon.check_log()
    assert docker.exports(began, time.time()) == 1
    docker.remove(small_image.name)
