"""The container image's settings: files that are mounted into it, and what k3d and the official image have for it."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tests.integration.conftest import PushedImage
from tests.integration.support.docker_api import Docker
from tests.integration.support.k3d import SOCKET, container
from tests.integration.support.private import PrivateUpstream, manifest_path, push_small_image, request
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress

pytestmark = pytest.mark.engines("docker29-classic-spare")


def test_a_settings_file_and_docker_logins_are_mounted_read_only(
    engine: EngineAddress, docker: Docker, k3dreg_image: str, port: int, shared: tuple[Path, str]
) -> None:
    here, there = shared
    private = PrivateUpstream()
    pushed = push_small_image(private, "container")
    login = base64.b64encode(f"{private.username}:{private.password}".encode()).decode()
    (here / "docker").mkdir()
    (here / "docker/config.json").write_text(json.dumps({"auths": {private.address: {"auth": login}}}))
    (here / "k3dreg.toml").write_text(
        f'listen = "tcp:{port}:interface=127.0.0.1"\nalias = ["registry.example:5000"]\nlog-level = "debug"\n'
    )
    binds = [
        f"{engine.inner_socket}:{SOCKET}",
        f"{there}/k3dreg.toml:/etc/k3dreg/k3dreg.toml:ro",
        f"{there}/docker:/root/.docker:ro",
    ]
    body = {"Image": k3dreg_image, "HostConfig": {"Binds": binds, "NetworkMode": "host"}}
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
        made.start()
        try:
            answer, _ = request(f"127.0.0.1:{port}", "HEAD", manifest_path(pushed))
            assert answer.status == 200, made.log()
        finally:
            docker.remove(pushed.name)
        RegistryClient(f"127.0.0.1:{port}").push_image("app", "t", b"a layer")
        answer, _ = request(f"127.0.0.1:{port}", "HEAD", "/v2/app/manifests/t?ns=registry.example:5000")
        assert answer.status == 200
        assert private.password not in made.log().replace(private.address, "")
        made.check_log()


def test_aws_profiles_are_mounted_read_only_and_open_ecr_to_botocore_and_to_awss_own_helper(
    engine: EngineAddress, docker: Docker, k3dreg_image: str, shared: tuple[Path, str]
) -> None:
    here, there = shared
    host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    (here / "credentials").write_text("[work]\naws_access_key_id = A\naws_secret_access_key = S\n")
    (here / "config").write_text("[profile work]\nregion = eu-west-1\n")
    ours = (
        "from k3dreg.credentials.ecr_tokens import fetch_token\n"
        "from k3dreg.credentials.ecr_hosts import EcrHost\n"
        'print(fetch_token(EcrHost("eu-west-1", account="123456789012")))'
    )
    # AWS's SDK may lose the answer of a server on a busy machine: "use of closed network connection", says its log.
    again = f"echo {host} | docker-credential-ecr-login get && break; cat $HOME/.ecr/log/ecr-login.log"
    theirs = f"for i in 1 2 3; do {again}; done"
    script = f"/opt/k3dreg/bin/python -c '{ours}'; {theirs}; ls -d $HOME/.aws"
    aws = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    aws.start()
    try:
        _, listening = aws.get_host_and_port()
        variables = {"AWS_PROFILE": "work", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening}"}
        variables["AWS_EC2_METADATA_DISABLED"] = "true"
        body = {
            "Image": k3dreg_image,
            "Cmd": ["sh", "-ec", script],
            "Env": [f"{name}={value}" for name, value in variables.items()],
            "HostConfig": {"Binds": [f"{there}:/root/.aws:ro"], "NetworkMode": "host"},
        }
        with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
            status, text = made.run()
    finally:
        aws.stop()
    assert status == 0, text
    for part in ("EcrToken(", f'"ServerURL":"{host}"', "/root/.aws"):
        assert part in text


def test_k3ds_proxy_settings_name_the_one_registry_that_it_stands_for_and_what_that_is_shown(
    engine: EngineAddress, docker: Docker, k3dreg_image: str, port: int, small_image: PushedImage
) -> None:
    private = PrivateUpstream()
    pushed = push_small_image(private, "container")
    variables = {
        "REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}",
        "REGISTRY_PROXY_REMOTEURL": f"http://{private.address}",
        "REGISTRY_PROXY_USERNAME": private.username,
        "REGISTRY_PROXY_PASSWORD": private.password,
        "REGISTRY_STORAGE_DELETE_ENABLED": "false",
    }
    body = {
        "Image": k3dreg_image,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "HostConfig": {"Binds": [f"{engine.inner_socket}:{SOCKET}"], "NetworkMode": "host"},
    }
    other = f"/v2/{small_image.repository}/manifests/1?ns={small_image.registry}"
    held = small_image.pull_into(engine)
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
        made.start()
        try:
            assert request(f"127.0.0.1:{port}", "HEAD", manifest_path(pushed))[0].status == 200, made.log()
            assert request(f"127.0.0.1:{port}", "HEAD", other)[0].status == 404
            made.wait_for(f"k3dreg serves images of {private.address} only")
        finally:
            held.remove(pushed.name)
            held.remove(small_image.name)
        client = RegistryClient(f"127.0.0.1:{port}")
        client.push_image("app", "t", b"a layer")
        assert client.delete("/v2/app/manifests/t").status == 405
        assert private.password not in made.log().replace(private.address, "")
        made.check_log()
