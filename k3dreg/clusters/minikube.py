"""Make containerd's file for minikube, which copies it into its node."""

from __future__ import annotations

from attrs import evolve

from k3dreg.clusters.kind import hosts_file
from k3dreg.clusters.place import Place
from k3dreg.clusters.text import File, about_hosting, about_images, about_offline, about_proxy, comment

HOSTS = "etc/containerd/certs.d/_default/hosts.toml"


def with_host(place: Place) -> tuple[File, ...]:
    """Return the file for k3dreg on the machine that minikube runs on, or in a container with a port of it."""
    made = hosts_file(place, HOSTS)
    text = comment(
        f"~/.minikube/files/{HOSTS}\nminikube start --container-runtime=containerd",
        "minikube copies what is in ~/.minikube/files into its node when it starts. The node's runtime must be "
        "containerd, because Docker uses mirrors for Docker Hub's images only.",
        "k3dreg runs on this machine, on an address that minikube's node reaches, such as `tcp:5000`.",
        *about_images(place),
        about_offline(place),
        about_proxy(place),
        about_hosting(),
    )
    return (evolve(made, text=text + "#\n" + made.text),)
