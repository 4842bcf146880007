"""One image's many names: what was pushed, what Docker has under a name of this registry, what was only built."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support.daemon import running
from tests.integration.support.docker_api import Docker
from tests.integration.support.one_file import archive, content_of, from_registry
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress

ALIAS = "k3d-dev-registry:5000"


class Names:
    """Images in Docker, each of other content, under names that are removed in the end."""

    def __init__(self, docker: Docker) -> None:
        self.docker = docker
        self.made: list[str] = []

    def make(self, name: str) -> bytes:
        content = uuid.uuid4().bytes
        query = {"fromSrc": "-", "repo": name, "tag": "t"}
        self.docker.progress(
            "POST", "/images/create", body=archive(content), query=query, content_type="application/x-tar"
        )
        self.made.append(f"{name}:t")
        return content


@pytest.fixture
def names(engine: EngineAddress) -> Iterator[Names]:
    names = Names(Docker(engine.socket))
    yield names
    for name in names.made:
        names.docker.remove(name)


@pytest.mark.engines("docker29", "docker29-classic")
def test_pushed_comes_first_then_each_alias_in_docker_then_the_bare_name(
    engine: EngineAddress, names: Names, tmp_path: Path
) -> None:
    app = f"team/app-{uuid.uuid4().hex[:8]}"
    with running(engine, tmp_path, "--alias", ALIAS) as daemon:
        client, port = RegistryClient(daemon.host), daemon.host.rpartition(":")[2]
        local = f"localhost:{port}"

        def check(content: bytes) -> None:
            """Whatever the registry is called."""
            for ns in ("", ALIAS, local, f"127.0.0.1:{port}"):
                assert content_of(from_registry(client, app, ns), "t") == content, ns
                listed = client.get(f"/v2/{app}/tags/list" + (f"?ns={ns}" if ns else ""))
                assert listed.json == {"name": app, "tags": ["t"]}
            assert app in client.get("/v2/_catalog").json["repositories"]

        assert client.get(f"/v2/{app}/manifests/t").status == 404
        bare = names.make(app)
        check(bare)
        aliased = names.make(f"{ALIAS}/{app}")
        check(aliased)
        pushed = names.make(f"{local}/{app}")
        names.docker.push(f"{local}/{app}", "t")
        check(pushed)
        # It is the user's now: Docker may forget it.
        names.docker.remove(f"{local}/{app}:t")
        check(pushed)
        assert client.delete(f"/v2/{app}/manifests/t").status == 202
        check(aliased)
        names.docker.remove(f"{ALIAS}/{app}:t")
        check(bare)
        names.docker.remove(f"{app}:t")
        assert client.get(f"/v2/{app}/manifests/t").status == 404
        # Another registry's image of the same name is another image.
        assert client.get(f"/v2/{app}/tags/list?ns=127.0.0.1:1").status == 404
        daemon.check_log()
