"""Images and artifacts that are not as most are, from a scripted registry, through real engines.

What the engine takes, a node gets; what the engine cannot take is 404 with advice.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.integration.conftest import EXPORTS_ONLY, READERS_ONLY
from tests.integration.support.artifacts import (
    a_model,
    a_signature,
    an_artifact,
    load_classic,
    load_layout,
    with_foreign_layer,
)
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.scripted import Scripted, ScriptedImage, an_image, an_index
from tests.integration.support.upstream import LAYER_TAR

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CLASSIC_STORES = ("docker29-classic", "docker26-classic", "docker20")
CONTAINERD_STORES = ("docker29", "docker26")


@pytest.fixture(scope="module")
def registry() -> Iterator[Scripted]:
    with Scripted() as registry:
        yield registry


@contextlib.contextmanager
def held(registry: Scripted, image: ScriptedImage, engine: EngineAddress) -> Iterator[str]:
    """A repository of its own that has the image as `1`; what the engine pulled of it is removed in the end."""
    repository = f"odd/{uuid.uuid4().hex}"
    registry.hold(repository, image)
    try:
        yield repository
    finally:
        Docker(engine.socket).remove(f"{registry.address}/{repository}:1")


@pytest.mark.engines("docker29")
@pytest.mark.parametrize("options", [(), EXPORTS_ONLY], ids=["files", "exports"])
def test_a_manifest_is_served_as_what_it_says_it_is_whatever_its_registry_called_it(
    engine: EngineAddress, registry: Scripted, options: tuple[str, ...], tmp_path: Path
) -> None:
    image = an_image()
    own, data = image.contents[image.root]
    image = evolve(image, contents={**image.contents, image.root: (DOCKER_MANIFEST, data)})
    with held(registry, image, engine) as repository, running(engine, tmp_path, *options) as daemon:
        Docker(engine.socket).pull(f"{registry.address}/{repository}", "1")
        puller = Puller(daemon.host, registry.address)
        if options:
            # Until an export has ended, only the engine's word is known, which is the registry's.
            assert puller.manifest(repository, "1").status == 200
            daemon.wait_for("exported ")
        for method in ("GET", "HEAD"):
            for reference in ("1", image.root):
                answer = puller.manifest(repository, reference, method)
                assert (answer.status, answer.media_type, answer.digest) == (200, own, image.root), (method, reference)
        puller.image(repository, "1")
        if not options:
            assert "exporting" not in daemon.log()


ARTIFACTS = {
    "signature": a_signature,
    "chart": lambda: an_artifact(
        "application/vnd.cncf.helm.config.v1+json", ["application/vnd.cncf.helm.chart.content.v1.tar+gzip"]
    ),
    "wasm": lambda: an_artifact("application/vnd.wasm.config.v0+json", ["application/wasm"]),
    "model": a_model,
    "unknown": lambda: an_artifact("application/vnd.unknown.config.v1+json", [LAYER_TAR], {}),
}


@pytest.mark.engines(*CONTAINERD_STORES)
@pytest.mark.parametrize("kind", ARTIFACTS)
@pytest.mark.parametrize("options", [(), EXPORTS_ONLY], ids=["files", "exports"])
def test_what_docker_fetched_and_could_not_unpack_is_served_at_the_first_request(
    engine: EngineAddress, registry: Scripted, kind: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    image = ARTIFACTS[kind]()
    with held(registry, image, engine) as repository, running(engine, tmp_path, *options) as daemon:
        puller = Puller(daemon.host, registry.address)
        answers = [puller.manifest(repository, "1", method) for method in ("HEAD", "GET", "GET")]
        assert [(answer.status, answer.digest) for answer in answers] == [(200, image.root)] * 3
        puller.image(repository, "1")
        assert registry.asked(rf"HEAD .*{repository}/manifests/1") == 1, "Docker pulled it once"


@pytest.mark.engines(*CONTAINERD_STORES)
def test_a_layer_that_may_not_be_distributed_need_not_be_here(engine: EngineAddress, tmp_path: Path) -> None:
    docker, name = Docker(engine.socket), f"registry.example/foreign/{uuid.uuid4().hex}"
    image = with_foreign_layer(an_image())
    load_layout(docker, f"{name}:1", image)
    try:
        with running(engine, tmp_path, *READERS_ONLY) as daemon:
            puller = Puller(daemon.host, "registry.example")
            path = name.partition("/")[2]
            for method in ("HEAD", "GET"):
                answer = puller.manifest(path, "1", method)
                assert (answer.status, answer.digest) == (200, image.root)
            for digest, (media_type, data) in image.contents.items():
                if not media_type:
                    assert puller.blob(path, digest, len(data)) == len(data)
            assert "is repairing it" not in daemon.log()
    finally:
        docker.remove(f"{name}:1")


@pytest.mark.engines(*CLASSIC_STORES)
@pytest.mark.parametrize("options", [READERS_ONLY, EXPORTS_ONLY], ids=["files", "exports"])
def test_a_config_of_nine_megabytes_is_served_out_of_a_classic_store(
    engine: EngineAddress, options: tuple[str, ...], tmp_path: Path
) -> None:
    """containerd nodes take configs of 10 MB."""
    docker, path = Docker(engine.socket), f"config/{uuid.uuid4().hex}"
    load_classic(docker, f"registry.example/{path}:1", {"config": {"Labels": {"large": "x" * 9_000_000}}})
    try:
        with running(engine, tmp_path, *options) as daemon:
            assert Puller(daemon.host, "registry.example").image(path, "1") > 9_000_000
    finally:
        docker.remove(f"registry.example/{path}:1")


@pytest.mark.engines(*CLASSIC_STORES)
def test_what_an_export_cannot_give_costs_one_export_however_often_it_is_asked_for(
    engine: EngineAddress, tmp_path: Path
) -> None:
    docker, path = Docker(engine.socket), f"config/{uuid.uuid4().hex}"
    load_classic(docker, f"registry.example/{path}:1", {"history": [{"created_by": "x" * 17_000_000}]})
    try:
        with running(engine, tmp_path) as daemon:
            puller = Puller(daemon.host, "registry.example")
            answers = [puller.manifest(path, "1", method) for method in ("HEAD", "GET", "GET")]
            assert [answer.status for answer in answers] == [404, 404, 404]
            assert "labels" in answers[-1].json["errors"][0]["detail"]["advice"]
            assert daemon.log().count(f"exporting registry.example/{path}:1 (") == 1
    finally:
        docker.remove(f"registry.example/{path}:1")


@pytest.mark.engines(*CLASSIC_STORES, "podman")
@pytest.mark.parametrize("kind", ARTIFACTS)
def test_what_an_engine_of_images_only_cannot_hold_is_not_there_or_comes_from_its_registry(
    engine: EngineAddress, registry: Scripted, kind: str, tmp_path: Path
) -> None:
    image = ARTIFACTS[kind]()
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    with held(registry, image, engine) as repository:
        with running(engine, tmp_path / "without") as daemon:
            answer = Puller(daemon.host, registry.address).manifest(repository, "1")
            assert (answer.status, answer.json["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
            assert "--origin-fallback" in answer.json["errors"][0]["detail"]["advice"]
        with running(engine, tmp_path / "with", "--origin-fallback") as daemon:
            puller = Puller(daemon.host, registry.address)
            for method in ("HEAD", "GET"):
                answer = puller.manifest(repository, "1", method)
                assert (answer.status, answer.digest) == (200, image.root)
            puller.image(repository, "1")


@pytest.mark.engines("docker28", "docker28-classic", "docker26", "docker20", "podman")
def test_a_name_that_is_too_long_for_an_engine_is_not_there(engine: EngineAddress, daemon: Daemon) -> None:
    """255 characters are a name to the distribution-spec; engines count the registry, or `library/`, too."""
    for registry in ("", "docker.io"):
        assert Puller(daemon.host, registry).manifest("a" * 255, "1").status == 404


@pytest.mark.engines(*CLASSIC_STORES)
def test_another_platform_than_the_engine_s_is_not_served_where_the_registry_has_the_engine_s(
    engine: EngineAddress, registry: Scripted, daemon: Daemon
) -> None:
    arm, amd = an_image(architecture="arm64"), an_image()
    for image, status in ((an_index([(arm, "arm64"), (amd, "amd64")]), 404), (an_index([(arm, "arm64")]), 200)):
        with held(registry, image, engine) as repository:
            query = {"fromImage": f"{registry.address}/{repository}", "tag": "1", "platform": "linux/arm64"}
            Docker(engine.socket).progress("POST", "/images/create", query=query)
            answer = Puller(daemon.host, registry.address).manifest(repository, "1")
            assert answer.status == status
            if status == 404:
                assert "linux/arm64" in answer.json["errors"][0]["message"]
            daemon.wait_for(rf"{repository}.*linux/arm64.*linux/amd64")
