"""`k3dreg config`: files that k3d, k3s, kind, minikube, Tilt and Skaffold can read, and the examples made of them."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from twisted.python import usage

from k3dreg import cli
from k3dreg.commands.config_files import text_of
from k3dreg.oci.errors import UsageError

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
COMMANDS = re.findall(r"^    k3dreg config (.+) > (\S+)$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)


def read(command: str) -> Any:
    """What a command prints, as the program reads it that it is for."""
    text = text_of(shlex.split(command))
    return tomllib.loads(text) if "[host." in text else yaml.safe_load(text)


@pytest.mark.parametrize(("command", "file"), COMMANDS)
def test_an_example_is_what_its_command_prints(command: str, file: str) -> None:
    assert (EXAMPLES / file).read_text() == text_of(shlex.split(command))


def test_every_example_can_be_read() -> None:
    files = [path for path in EXAMPLES.rglob("*.*") if path.suffix in (".yaml", ".toml")]
    assert {str(path.relative_to(EXAMPLES)) for path in files} >= {file for _, file in COMMANDS}
    for path in files:
        assert tomllib.loads(path.read_text()) if path.suffix == ".toml" else yaml.safe_load(path.read_text())


def test_k3d_creates_the_registry_with_the_socket_and_for_every_image() -> None:
    config = read(
        "k3d --name my-reg --host-port 5007 --image registry.example/k3dreg:1 --socket /run/user/1000/docker.sock"
    )
    assert (config["apiVersion"], config["kind"]) == ("k3d.io/v1alpha5", "Simple")
    assert config["registries"] == {
        "create": {
            "name": "my-reg",
            "host": "127.0.0.1",
            # k3d's schema has it as a string.
            "hostPort": "5007",
            "image": "registry.example/k3dreg:1",
            "proxy": {"remoteURL": "*"},
            "volumes": ["/run/user/1000/docker.sock:/var/run/docker.sock", "my-reg:/var/lib/k3dreg"],
        }
    }
    assert "options" not in config


def test_one_port_inside_and_outside_is_what_k3d_enforces() -> None:
    assert read("k3d --port 5005")["registries"]["create"]["enforcePortMatch"] is True
    assert "--enforce-port-match" in text_of(shlex.split("k3d --mode separate --port 5005"))
    with pytest.raises(UsageError, match="5000"):
        text_of(["k3d", "--port", "5001"])


def test_a_registry_of_its_own_is_used_under_the_name_that_k3d_gives_it() -> None:
    text = text_of(["k3d", "--mode", "separate", "--name", "reg.localhost"])
    assert "k3d registry create reg.localhost --image k3dreg:latest --port 127.0.0.1:5005 \\" in text
    registries = yaml.safe_load(text)["registries"]
    assert registries["use"] == ["k3d-reg.localhost:5005"]
    # k3d forgets what a registry is a proxy for when it is used again, so the mirror is told.
    assert mirrors(registries["config"]) == {"*": {"endpoint": ["http://k3d-reg.localhost:5000"]}}


@pytest.mark.parametrize(
    ("command", "volume"),
    [
        ("k3d --mode separate --name reg", "--volume k3d-reg:/var/lib/k3dreg"),
        ("kind --name reg", "-v reg:/var/lib/k3dreg"),
    ],
)
def test_what_is_pushed_outlives_the_container(command: str, volume: str) -> None:
    text = text_of(command.split())
    assert volume in text
    assert f"docker volume rm {volume.split()[1].partition(':')[0]}." in " ".join(text.split("\n# "))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("k3d", "k3d-registry.localhost"),
        ("k3d --mode host", "host.k3d.internal"),
        ("kind", "k3dreg"),
        ("minikube", "host.minikube.internal"),
        ("k3s --name 10.0.0.7", "10.0.0.7"),
    ],
)
def test_nodes_with_a_proxy_must_not_use_it_for_k3dreg(command: str, name: str) -> None:
    assert f"# If the nodes have a proxy (HTTP_PROXY), their NO_PROXY must list {name}.\n" in text_of(command.split())
    assert "NO_PROXY" not in text_of(["k3s"])


def test_the_race_is_explained_where_there_is_one() -> None:
    assert "There is one race" in text_of(["k3d"])
    assert "race" not in text_of(["k3d", "--mode", "separate"])


def test_k3dreg_on_the_host_is_reached_by_the_hosts_name() -> None:
    config = read("k3d --mode host --port 5009")
    assert mirrors(config["registries"]["config"]) == {"*": {"endpoint": ["http://host.k3d.internal:5009"]}}


@pytest.mark.parametrize("mode", ["created", "separate", "host"])
def test_where_offline_matters_every_node_of_k3d_has_the_flag(mode: str) -> None:
    [argument] = read(f"k3d --mode {mode} --offline")["options"]["k3s"]["extraArgs"]
    assert argument == {"arg": "--disable-default-registry-endpoint", "nodeFilters": ["server:*", "agent:*"]}


def test_k3s_has_a_wildcard_and_what_a_door_needs() -> None:
    assert read("k3s") == {"mirrors": {"*": {"endpoint": ["http://127.0.0.1:5000"]}}}
    assert read("k3s --name 10.0.0.7 --auth --ca /etc/ca.pem") == {
        "mirrors": {"*": {"endpoint": ["https://10.0.0.7:5000"]}},
        "configs": {
            "10.0.0.7:5000": {
                "auth": {"username": "USER", "password": "PASSWORD"},
                "tls": {"ca_file": "/etc/ca.pem"},
            }
        },
    }
    assert "disable-default-registry-endpoint: true" in " ".join(text_of(["k3s", "--offline"]).split("\n# "))


def test_k3ds_nodes_are_given_the_certificate() -> None:
    config = read("k3d --mode host --ca /home/me/ca.pem")
    inside = yaml.safe_load(config["registries"]["config"])["configs"]["host.k3d.internal:5000"]["tls"]["ca_file"]
    assert config["volumes"] == [{"volume": f"/home/me/ca.pem:{inside}", "nodeFilters": ["server:*", "agent:*"]}]


@pytest.mark.parametrize("command", ["kind", "kind --mode host --name 172.19.0.1", "minikube"])
def test_containerd_asks_the_mirror_first_and_only_it_when_told_so(command: str) -> None:
    file = {"kind": "certs.d/_default/hosts.toml", "minikube": ""}[command.split()[0]]
    hosts = read(f"{command} {file}")
    [(url, host)] = hosts["host"].items()
    assert host == {"capabilities": ["pull", "resolve"]}
    assert "server" not in hosts
    assert read(f"{command} --offline {file}")["server"] == url
    secure = read(f"{command} --ca /ca.pem {file}")
    assert list(secure["host"]) == [url.replace("http:", "https:")]
    assert secure["host"][url.replace("http:", "https:")]["ca"] == "ca.pem"


@pytest.mark.parametrize("command", ["kind", "minikube"])
def test_a_login_has_its_place_for_each_host_that_is_asked(command: str) -> None:
    file = {"kind": "certs.d/_default/hosts.toml", "minikube": ""}[command]
    header = {"authorization": ["Basic BASE64"]}
    hosts = read(f"{command} --auth {file}")
    assert [host["header"] for host in hosts["host"].values()] == [header]
    assert "header" not in hosts
    hosts = read(f"{command} --auth --offline --ca /ca.pem {file}")
    [host] = hosts["host"].values()
    assert (hosts["header"], host["header"], host["ca"], hosts["ca"]) == (header, header, "ca.pem", "ca.pem")
    said = text_of([command, "--auth", *file.split()])
    assert "# BASE64 is what this prints:\n# printf %s 'USER:PASSWORD' | base64\n" in said


def test_kinds_nodes_have_the_directory_that_the_file_is_in() -> None:
    cluster = read("kind kind-cluster.yaml")
    assert (cluster["kind"], cluster["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    [mount] = cluster["nodes"][0]["extraMounts"]
    assert mount == {"hostPath": "certs.d", "containerPath": "/etc/containerd/certs.d"}
    patch = tomllib.loads(cluster["containerdConfigPatches"][0])
    assert patch["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["config_path"] == mount["containerPath"]


def test_several_files_are_told_apart_and_one_can_be_had_alone() -> None:
    text = text_of(["kind"])
    assert text.count("\n# ==> ") + text.startswith("# ==> ") == 2
    assert text_of(["kind", "kind-cluster.yaml"]) in text
    with pytest.raises(UsageError, match="kind-cluster"):
        text_of(["kind", "no.yaml"])


@pytest.mark.parametrize(
    ("command", "host", "inside"),
    [
        ("k3d --name reg --host-port 5007", "127.0.0.1:5007", "reg:5000"),
        ("k3d --mode separate --name reg", "127.0.0.1:5005", "k3d-reg:5000"),
        ("k3d --mode host --port 5009", "localhost:5009", "host.k3d.internal:5009"),
        ("kind", "localhost:5005", "k3dreg:5000"),
        ("minikube", "localhost:5000", "host.minikube.internal:5000"),
    ],
)
def test_tilt_and_skaffold_find_the_registry(command: str, host: str, inside: str) -> None:
    found = read(f"{command} --configmap")
    assert found["metadata"] == {"name": "local-registry-hosting", "namespace": "kube-public"}
    assert yaml.safe_load(found["data"]["localRegistryHosting.v1"]) == {
        "host": host,
        "hostFromContainerRuntime": inside,
        "hostFromClusterNetwork": inside,
    }


def test_a_pod_is_not_sent_to_its_own_loopback() -> None:
    found = yaml.safe_load(read("k3s --configmap")["data"]["localRegistryHosting.v1"])
    assert found == {"host": "localhost:5000", "hostFromContainerRuntime": "127.0.0.1:5000"}


@pytest.mark.parametrize(
    "command",
    [
        "",
        "openshift",
        "--mode host k3d",
        "k3d --mode somewhere",
        "kind --mode created",
        "k3d --mode host --host-port 5005",
        "k3d --port 0",
        "k3d --port 65536",
        "k3d --host-port '5005\n'",
        "k3d --name 'a\nb'",
        "k3d --name a:b",
        "k3s --name '\"*\"'",
        "k3d --image 'x y'",
        "k3d --socket docker.sock",
        "k3d --socket '/a:b'",
        "k3d --ca /ca.pem",
        "k3d --mode separate --ca /ca.pem",
        "k3d one two",
        "k3d --nonsense",
    ],
)
def test_what_cannot_be_is_a_line_and_status_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((UsageError, usage.UsageError)):
        text_of(shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", *shlex.split(command)])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.startswith("k3dreg: ")
    assert "Usage: k3dreg config k3d|k3s|kind|minikube" in said.err


def test_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["config", "k3s", "--name", "10.0.0.7"])
    assert "http://10.0.0.7:5000" in capsys.readouterr().out


def mirrors(registries: str) -> Any:
    return yaml.safe_load(registries)["mirrors"]
