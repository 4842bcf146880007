"""This registry's own names, and what they mean in the engine."""

from __future__ import annotations

import pytest

from k3dreg.docker.containers import parse_container
from k3dreg.docker.image import ImageStore
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidName, NotOurs
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.registry.own_names import OwnNames, names_of_container, names_of_machine, short_name

NAMES = OwnNames(["localhost:5005", "k3d-reg:5000"])


def ref(path: str, registry: str | None, tag: str = "t") -> Reference:
    return Reference(Repository.parse(path, registry), Tag.parse(tag))


@pytest.mark.parametrize("registry", [None, "localhost:5005", "k3d-reg:5000", "LOCALHOST:5005"])
def test_every_own_name_means_the_same_repository(registry: str | None) -> None:
    repository = Repository.parse("app", registry)
    assert NAMES.own(repository) == NAMES.ours(repository) == Repository(None, "app")


@pytest.mark.parametrize("registry", ["docker.io", "ghcr.io", "localhost:5006", "k3d-reg"])
def test_other_registries_stay_what_they_are(registry: str) -> None:
    repository = Repository.parse("team/app", registry)
    assert not NAMES.is_own(registry)
    assert NAMES.own(repository) == repository
    with pytest.raises(NotOurs):
        NAMES.ours(repository)
    assert NAMES.in_engine(Reference(repository, Tag("t"))) == (Reference(repository, Tag("t")),)


def test_the_engine_is_asked_for_each_alias_and_then_for_the_bare_name() -> None:
    assert [str(r) for r in NAMES.in_engine(ref("app", None))] == [
        "localhost:5005/app:t",
        "k3d-reg:5000/app:t",
        "app:t",
    ]


@pytest.mark.parametrize("registry", [None, "k3d-reg:5000"])
def test_a_bare_name_that_is_another_registrys_is_not_ours(registry: str | None) -> None:
    asked = {str(r) for r in NAMES.in_engine(ref("ghcr.io/team/app", registry))}
    assert asked == {"localhost:5005/ghcr.io/team/app:t", "k3d-reg:5000/ghcr.io/team/app:t"}


def test_the_name_that_the_client_said_comes_first_and_once() -> None:
    asked = NAMES.in_engine(ref("app", "K3D-REG:5000"))
    assert [str(r) for r in asked] == ["k3d-reg:5000/app:t", "localhost:5005/app:t", "app:t"]


def test_what_podman_built_under_a_short_name_comes_before_docker_hubs() -> None:
    def names(reference: Reference) -> list[str]:
        return [str(r) for r in NAMES.in_engine(reference, ImageStore.PODMAN)]

    assert names(ref("my-image", "docker.io")) == ["localhost/my-image:t", "docker.io/library/my-image:t"]
    assert names(ref("team/app", "docker.io")) == ["localhost/team/app:t", "docker.io/team/app:t"]
    assert names(ref("team/app", "ghcr.io")) == ["ghcr.io/team/app:t"]
    assert names(ref("app", None))[-1] == "app:t"  # Podman itself knows what a bare name means


@pytest.mark.parametrize(
    ("full", "short"),
    [
        (("docker.io", "library/nginx"), (None, "nginx")),
        (("docker.io", "team/app"), (None, "team/app")),
        (("localhost", "my-image"), (None, "my-image")),
        (("ghcr.io", "team/app"), ("ghcr.io", "team/app")),
        (("localhost:5005", "app"), ("localhost:5005", "app")),
    ],
)
def test_podmans_full_names_are_made_short(full: tuple[str, str], short: tuple[str | None, str]) -> None:
    assert short_name(Repository(*full)) == Repository(*short)


def test_digest_references_keep_their_digest() -> None:
    digest = Digest.of(b"x")
    asked = NAMES.in_engine(Reference(Repository.parse("app", "localhost:5005"), digest))
    assert all(r.digest == digest for r in asked)


def test_what_is_learned_later_counts_and_is_told_once() -> None:
    names = OwnNames()
    assert names.learn(["A:1", "b:2"]) == ("a:1", "b:2")
    assert names.learn(["b:2", "c:3"]) == ("c:3",)
    assert names.hosts == ("a:1", "b:2", "c:3")


def test_what_the_settings_say_anew_takes_the_place_of_what_they_said_and_what_was_learned_stays() -> None:
    names = OwnNames(["a:1", "b:2"])
    names.learn(["b:2", "c:3"])
    names.tell(["D:4"])
    assert names.hosts == ("d:4", "b:2", "c:3")
    assert not names.is_own("a:1")
    with pytest.raises(InvalidName):
        names.tell(["e:5", "f"])
    assert names.hosts == ("d:4", "b:2", "c:3")


@pytest.mark.parametrize("host", ["docker.io", "localhost", "a b:1", "host:", "host:x", "../x:1", ""])
def test_a_name_without_a_port_cannot_be_taken(host: str) -> None:
    names = OwnNames()
    with pytest.raises(InvalidName):
        names.learn(["good:1", host])
    assert names.hosts == ()


def test_a_machine_is_reached_by_its_name_and_by_the_loopback() -> None:
    names = names_of_machine([5005], "laptop")
    assert {"localhost:5005", "127.0.0.1:5005", "laptop:5005", "host.k3d.internal:5005"} <= set(names)
    OwnNames(names)


INSPECTED = {
    "Name": "/k3d-reg",
    "Config": {
        "Hostname": "k3d-reg",
        "Labels": {
            "k3d.registry.host": "reg.localhost",
            "k3s.registry.port.external": "5005",
            "k3s.registry.port.internal": "5000",
        },
    },
    "HostConfig": {"PortBindings": {"5000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "0"}]}},
    "NetworkSettings": {
        "Ports": {
            "5000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "5007"}],
            "9000/tcp": [{"HostPort": "9"}],
            "1/udp": None,
        },
        "Networks": {"k3d-dev": {"Aliases": ["k3d-reg", "0123456789ab"]}},
    },
}


def test_a_container_is_called_by_its_names_inside_and_by_its_published_port_outside() -> None:
    names = set(names_of_container(parse_container(INSPECTED), "k3d-reg", [5000]))
    assert {"k3d-reg:5000", "reg.localhost:5000", "0123456789ab:5000"} <= names
    assert {"localhost:5007", "127.0.0.1:5007", "k3d-reg:5007", "localhost:5005", "k3d-reg:5005"} <= names
    assert not {name for name in names if name.endswith((":9", ":0"))}
    assert "localhost:5000" not in names


def test_a_container_of_the_machines_name_is_not_this_process() -> None:
    assert names_of_container(parse_container(INSPECTED), "laptop", [5000]) == ()


@pytest.mark.parametrize("inspected", [{}, {"Config": None}, {"Config": {"Hostname": "h"}, "NetworkSettings": []}])
def test_odd_answers_of_the_engine_are_survived(inspected: dict[str, object]) -> None:
    assert names_of_container(parse_container(inspected), "h", []) == ()


def test_names_that_are_no_hosts_are_left_out() -> None:
    odd = {"Name": "/a b", "Config": {"Hostname": "h", "Labels": {"k3d.registry.host": "../../etc"}}}
    assert names_of_container(parse_container(odd), "h", [5000]) == ("h:5000",)
