"""Make files for k3d: for a registry that is created with the cluster, a separate registry, and k3dreg on the host."""

from __future__ import annotations

from attrs import evolve

from k3dreg.clusters.containerd import registries_yaml
from k3dreg.clusters.place import DEFAULT_PORT, Place
from k3dreg.clusters.text import File, about_hosting, about_images, about_offline, about_proxy, about_volume, comment
from k3dreg.oci.errors import UsageError

CLUSTER = "k3d-cluster.yaml"
_HEAD = "apiVersion: k3d.io/v1alpha5\nkind: Simple\n"
_FLAG = "--disable-default-registry-endpoint"
_NODES = "nodeFilters:\n{0}  - server:*\n{0}  - agent:*\n"
# The path of k3dreg's certificate in the nodes.
_CA = "/etc/rancher/k3s/k3dreg-ca.pem"


def with_cluster(place: Place) -> tuple[File, ...]:
    """Return the files for a registry that k3d creates, and removes, with the cluster.  Raises `UsageError`."""
    _is_plain(place)
    matched = _port_is_matched(place)
    create = (
        f"  create:\n    name: {place.name}\n"
        f'    host: "127.0.0.1"\n    hostPort: "{place.host_port}"\n'
        f"{'    enforcePortMatch: true # k3d 5.9 or later' + chr(10) if matched else ''}"
        f'    image: {place.image}\n    proxy:\n      remoteURL: "*"\n    volumes:\n'
        f"      - {place.socket}:/var/run/docker.sock\n"
        f"      - {place.name}:/var/lib/k3dreg\n"
        "      # Docker's files, for a k3dreg that may not start a helper container to read them in place.\n"
        "      # - /var/lib/docker:/var/lib/docker:ro\n"
        "      # Settings that k3d has no field for, and the credentials of `docker login`.\n"
        "      # - /etc/k3dreg/k3dreg.toml:/etc/k3dreg/k3dreg.toml:ro\n"
        "      # - /root/.docker:/root/.docker:ro\n"
    )
    if place.auth:
        text = registries_yaml(place.url, auth=True)
        create += "  config: |\n" + _indented(text[text.index("configs:") :], "    ")
    race = (
        "There is one race: at each start of the cluster, k3d starts the registry after all nodes, and does not wait "
        "for it. Nodes may ask for the first images (coredns, local-path-provisioner, ...) before the registry "
        f"answers; {_meanwhile(place)} A registry that runs before the cluster has no such race: k3dreg config k3d "
        "--mode separate."
    )
    text = comment(
        f"k3d cluster create --config {CLUSTER}",
        f"k3dreg is created with the cluster, and deleted with it. {about_volume(place)}",
        race,
        *about_images(place),
        about_offline(place),
        about_proxy(place),
    )
    return (File(CLUSTER, text + _HEAD + "registries:\n" + create + _options(place)),)


def with_separate(place: Place) -> tuple[File, ...]:
    """Return the files for a registry that k3d created before its clusters.  Raises `UsageError`."""
    _is_plain(place)
    matched = _port_is_matched(place)
    # k3d adds the prefix `k3d-` to the name of a registry.
    short = place.name.removeprefix("k3d-")
    place = evolve(place, name=f"k3d-{short}")
    command = (
        f"k3d registry create {short} --image {place.image} --port 127.0.0.1:{place.host_port}"
        f"{' --enforce-port-match' if matched else ''} \\\n    --volume {place.socket}:/var/run/docker.sock \\\n"
        f"    --volume {place.name}:/var/lib/k3dreg --no-help"
    )
    text = comment(
        f"{command}\nk3d cluster create --config {CLUSTER}",
        "k3dreg runs before the cluster, so it serves even the cluster's first images. It outlives the cluster, and "
        "other clusters may use it.",
        about_volume(place),
        "If k3dreg may not start a helper container, --volume /var/lib/docker:/var/lib/docker:ro lets it read Docker's "
        "files in place.",
        *about_images(place),
        about_offline(place),
        about_proxy(place),
    )
    use = f"registries:\n  use:\n    - {place.name}:{place.host_port}\n"
    return (File(CLUSTER, text + _HEAD + use + _config(place) + _options(place)),)


def with_host(place: Place) -> tuple[File, ...]:
    """Return the files for k3dreg as a service of the machine that k3d's containers run on."""
    text = comment(
        f"k3d cluster create --config {CLUSTER}",
        "k3dreg runs on this machine, on an address that containers reach: `tcp:5000`, or that of Docker's bridge.",
        f"k3d tells nodes where {place.name} is when they run, which may be after they ask for their first images; "
        f"{_meanwhile(place)}"
        if place.name == "host.k3d.internal"
        else "",
        *about_images(place),
        about_offline(place),
        about_proxy(place),
        about_hosting(),
    )
    return (File(CLUSTER, text + _HEAD + "registries:\n" + _config(place) + _mounted(place) + _options(place)),)


def _meanwhile(place: Place) -> str:
    """Return what a node does if k3dreg does not answer.  The kubelet's back-off begins with 10 s, and doubles."""
    return "they ask again after 10 s, 20 s, ..." if place.offline else "these come from their own registries, once."


def _is_plain(place: Place) -> None:
    """Raise `UsageError` if nodes should reach the place by TLS."""
    if place.ca:
        raise UsageError("--ca: k3d tells nodes that its registries speak plain HTTP; use --mode host")


def _port_is_matched(place: Place) -> bool:
    """Return whether the registry listens, in its container, on its port of the host.

    Raises `UsageError` for a port that is neither that nor the default one.
    """
    if place.port not in (DEFAULT_PORT, place.host_port):
        raise UsageError("--port: a registry of k3d's listens on 5000, or (k3d 5.9) on its --host-port")
    return place.port != DEFAULT_PORT


def _config(place: Place) -> str:
    return "  config: |\n" + _indented(registries_yaml(place.url, ca=_CA if place.ca else "", auth=place.auth), "    ")


def _mounted(place: Place) -> str:
    if not place.ca:
        return ""
    return f"volumes:\n  - volume: {place.ca}:{_CA}\n    " + _NODES.format("    ")


def _options(place: Place) -> str:
    if not place.offline:
        return ""
    return f"options:\n  k3s:\n    extraArgs:\n      - arg: {_FLAG}\n        " + _NODES.format("        ")


def _indented(text: str, by: str) -> str:
    return "".join(f"{by}{line}\n" for line in text.splitlines())
