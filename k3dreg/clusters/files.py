"""Choose the files that a cluster needs, by the kind of the cluster and the place of k3dreg."""

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
    """A kind of cluster with a mode.

    `name` is the default name by which nodes reach k3dreg.  `make` returns the files.
    """

    name: str
    make: Callable[[Place], tuple[File, ...]]


# The first mode of each kind is its default.
CASES: Mapping[str, Mapping[str, Case]] = {
    "k3d": {
        CREATED: Case("k3d-registry.localhost", with_cluster),
        SEPARATE: Case("k3d-registry.localhost", with_separate),
        HOST: Case("host.k3d.internal", with_host),
    },
    "k3s": {HOST: Case("127.0.0.1", on_node)},
    "kind": {
        SEPARATE: Case("k3dreg", kind.with_separate),
        # The gateway of kind's network, if it is the first that is created and Docker has its default address pools.
        HOST: Case("172.18.0.1", kind.with_host),
    },
    "minikube": {HOST: Case("host.minikube.internal", minikube.with_host)},
}


def place_for(cluster: str, mode: str = "", name: str = "", port: int = 0, host_port: int = 0) -> Place:
    """Return the place of k3dreg, with defaults for the arguments that are "" or 0.

    Raises `UsageError` for an unknown cluster or mode, and for ports that do not go together.
    """
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
    """Return the files for a cluster.  Raises `UsageError` if this kind of cluster does not support the place."""
    return CASES[cluster][place.mode].make(place)


def hosting_for(cluster: str, place: Place) -> File:
    """Return the ConfigMap by which Tilt and Skaffold find k3dreg.  Raises `UsageError` as `files_for` does."""
    files_for(cluster, place)
    made = cluster == "k3d" and place.mode != HOST
    if cluster == "k3d" and place.mode == SEPARATE and not place.name.startswith("k3d-"):
        place = evolve(place, name=f"k3d-{place.name}")
    comment = "# How Tilt and Skaffold find this registry (KEP-1755).\n"
    comment += "# k3d creates it for its own registries.\n" if made else f"# kubectl apply -f {CONFIG_MAP}\n"
    # In a ConfigMap of k3d's own, `host` has the address that the port is bound to, and not `localhost`.
    return File(CONFIG_MAP, comment + config_map(place, f"127.0.0.1:{place.host_port}" if made else ""))
