"""Make the file for the nodes of k3s."""

from __future__ import annotations

from k3dreg.clusters.containerd import registries_yaml
from k3dreg.clusters.place import Place
from k3dreg.clusters.text import File, about_hosting, about_images, about_offline, about_proxy, comment


def on_node(place: Place) -> tuple[File, ...]:
    """Return the `registries.yaml` for each node."""
    text = comment(
        "/etc/rancher/k3s/registries.yaml on each node, which k3s reads when it starts.",
        ""
        if not place.name.startswith("127.")
        else "For k3s on the machine where k3dreg runs; other nodes need --name.",
        *about_images(place),
        about_proxy(place),
        about_offline(place, ", if /etc/rancher/k3s/config.yaml says disable-default-registry-endpoint: true"),
        about_hosting(),
    )
    return (File("registries.yaml", text + registries_yaml(place.url, ca=place.ca, auth=place.auth)),)
