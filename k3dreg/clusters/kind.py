"""Make files for kind: the cluster's, and containerd's, which is mounted into the nodes when they are created."""

from __future__ import annotations

from k3dreg.clusters.containerd import LOGIN, hosts_toml
from k3dreg.clusters.place import Place
from k3dreg.clusters.text import File, about_hosting, about_images, about_offline, about_proxy, about_volume, comment

CLUSTER = "kind-cluster.yaml"
HOSTS = "certs.d/_default/hosts.toml"


def with_separate(place: Place) -> tuple[File, ...]:
    """Return the files for k3dreg in a container on kind's network."""
    port = f" -e REGISTRY_HTTP_ADDR=:{place.port}" if place.port != 5000 else ""
    steps = (
        f"docker run -d --restart unless-stopped --name {place.name}{port} \\\n"
        f"    -p 127.0.0.1:{place.host_port}:{place.port} -v {place.socket}:/var/run/docker.sock \\\n"
        f"    -v {place.name}:/var/lib/k3dreg {place.image}\n"
        f"kind create cluster --config {CLUSTER}     # with {HOSTS} beside it\n"
        f"docker network connect kind {place.name}"
    )
    return _files(place, steps, about_volume(place))


def with_host(place: Place) -> tuple[File, ...]:
    """Return the files for k3dreg as a service of the machine that kind's containers run on."""
    return _files(
        place,
        f"kind create cluster --config {CLUSTER}     # with {HOSTS} beside it",
        f"{place.name} is this machine's address in kind's network, which exists once there is a cluster. With Docker "
        "Desktop it is host.docker.internal. You may change the file in certs.d at any time. To see the address:",
        "docker network inspect kind --format \\\n    '{{range .IPAM.Config}}{{.Gateway}} {{end}}'",
    )


def _files(place: Place, *steps: str) -> tuple[File, ...]:
    cluster = comment(
        *steps,
        *about_images(place),
        about_offline(place),
        about_proxy(place),
        about_hosting(),
    )
    cluster += (
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"
        "nodes:\n  # The same for each further node.\n  - role: control-plane\n    extraMounts:\n"
        "      - hostPath: certs.d\n        containerPath: /etc/containerd/certs.d\n"
        "# For nodes of kind before 0.27; the others have it.\n"
        "containerdConfigPatches:\n"
        '  - |-\n    [plugins."io.containerd.grpc.v1.cri".registry]\n      config_path = "/etc/containerd/certs.d"\n'
    )
    return File(CLUSTER, cluster), hosts_file(place, HOSTS)


def hosts_file(place: Place, name: str) -> File:
    """Return containerd's file, under `name`, with the mirror of all registries that have no file of their own."""
    said = comment(
        "containerd reads this at each pull, for every registry that has no directory of its own in certs.d.",
        f"ca.pem beside it is {place.ca}." if place.ca else "",
        f"{LOGIN} is what this prints:\nprintf %s 'USER:PASSWORD' | base64" if place.auth else "",
    )
    ca = "ca.pem" if place.ca else ""
    return File(name, said + hosts_toml(place.url, ca=ca, only=place.offline, auth=place.auth))
