"""Which files a cluster needs, for each kind of cluster and each place where k3dreg may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import evolve, frozen

from k3dreg.clusters import kind, minikube
from k3dreg.clusters.hosting import config_map
from k3dreg.clusters.k3d import with_cluster, with_host, with_separate
from k3dreg.clusters.k3s import on_node
from k3dreg.clusters.place import CREATED, DEFAULT_HOST_PORT, DEFAULT_PORT, HOST, SEPARATE, Place
from k3dreg.clusters.text import File
from k3dreg.oci.errors import UsageError

CONFIG_MAP = "local-registry-hosting.yaml"


@frozen
class Case:
    """A kind of cluster with a mode: what nodes call k3dreg when nobody says, and what makes the files."""

    name: str
    make: Callable[[Place], tuple[File, ...]]


# The first mode of each is the one that is meant when none is given.
CASES: Mapping[str, Mapping[str, Case]] = {
    "k3d": {
        CREATED: Case("k3d-registry.localhost", with_cluster),
        SEPARATE: Case("k3d-registry.localhost", with_separate),
        HOST: Case("host.k3d.internal", with_host),
    },
    "k3s": {HOST: Case("127.0.0.1", on_node)},
    "kind": {
        SEPARATE: Case("k3dreg", kind.with_separate),
        # The gateway of the network that kind makes, where Docker's first free range is what it is by default.
        HOST: Case("172.18.0.1", kind.with_host),
    },
    "minikube": {HOST: Case("host.minikube.internal", minikube.with_host)},
}


def place_for(cluster: str, mode: str = "", name: str = "", port: int = 0, host_port: int = 0) -> Place:
    """The place with what is not given ("" or 0) as it is by default.  Raises `UsageError`."""
    cases = CASES.get(cluster)
    if cases is None:
        raise UsageError(f"{cluster!r} is not one of {', '.join(CASES)}")
    mode = mode or next(iter(cases))
    if mode not in cases:
        raise UsageError(f"--mode {mode!r} is not one of {cluster}'s: {', '.join(cases)}")
    port = port or DEFAULT_PORT
    if mode == HOST and host_port not in (0, port):
        raise UsageError("--host-port is for a k3dreg in a container; for one on the host use --port")
    return Place(mode, name or cases[mode].name, port, port if mode == HOST else host_port or DEFAULT_HOST_PORT)


def files_for(cluster: str, place: Place) -> tuple[File, ...]:
    """What the user needs.  Raises `UsageError` for what cannot be had in this case."""
    return CASES[cluster][place.mode].make(place)


def hosting_for(cluster: str, place: Place) -> File:
    """The ConfigMap for Tilt and Skaffold.  Raises `UsageError` as `files_for` does."""
    files_for(cluster, place)
    made = cluster == "k3d" and place.mode != HOST
    if cluster == "k3d" and place.mode == SEPARATE and not place.name.startswith("k3d-"):
        place = evolve(place, name=f"k3d-{place.name}")
    comment = "# How Tilt and Skaffold find this registry (KEP-1755).\n"
    comment += "# k3d creates it for its own registries.\n" if made else f"# kubectl apply -f {CONFIG_MAP}\n"
    # k3d writes the address that the port is bound to.
    return File(CONFIG_MAP, comment + config_map(place, f"127.0.0.1:{place.host_port}" if made else ""))
