"""Making an engine lose blobs, as users' engines do (moby#49473)."""

from __future__ import annotations

import io
import json
import tarfile
import time

from tests.integration.support.docker_api import Docker
from tests.integration.support.private import SmallImage


def exported(docker: Docker, image: str) -> int:
    """How many bytes of blobs `docker save` gives."""
    with tarfile.open(fileobj=io.BytesIO(docker.call("GET", "/images/get", query={"names": image}))) as archive:
        return sum(member.size for member in archive if member.name.startswith("blobs/"))


def lose_blobs(docker: Docker, image: SmallImage, registry_auth: str = "") -> None:
    """Leave the engine with the unpacked layers of the image and without their blobs, as users' engines come to be.

    A container keeps the snapshots while the image is removed; the next pull finds them, and fetches no layer.
    """

    def pull() -> None:
        query = {"fromImage": f"{image.registry}/{image.repository}", "tag": "1"}
        docker.progress("POST", "/images/create", query=query, registry_auth=registry_auth)

    pull()
    created = json.loads(
        docker.call(
            "POST",
            "/containers/create",
            body=json.dumps({"Image": image.name, "Cmd": ["/one"]}),
            content_type="application/json",
        )
    )
    docker.remove(image.name)
    docker.remove(image.digest)
    end = time.monotonic() + 20
    while True:
        pull()
        if exported(docker, image.name) < 10_000:  # manifests alone
            break
        assert time.monotonic() < end, "the engine does not lose blobs any more"
        docker.remove(image.name)
        docker.remove(image.digest)
        time.sleep(0.5)  # the engine collects garbage when it likes
    docker.call("DELETE", f"/containers/{created['Id']}")
