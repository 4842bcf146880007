"""Make the ConfigMap `local-registry-hosting`, by which programs find a cluster's registry to push to (KEP-1755).

Tilt pushes to `host` and writes `hostFromContainerRuntime` into pods.  Skaffold reads only `host`, and writes that into
pods, too.  This works because a node whose mirror is k3dreg asks k3dreg for `localhost:…`, too.
"""

from __future__ import annotations

from k3dreg.clusters.place import Place

_LOOPBACK = ("localhost", "127.", "[::1]")


def config_map(place: Place, host: str = "") -> str:
    """Return the ConfigMap, for kubectl.  `host` is k3dreg's address on the host, by default `localhost:PORT`."""
    lines = [f'host: "{host or place.host_address}"', f'hostFromContainerRuntime: "{place.address}"']
    # In a pod, a loopback address leads to the pod itself.
    if not place.name.startswith(_LOOPBACK):
        lines.append(f'hostFromClusterNetwork: "{place.address}"')
    data = "".join(f"    {line}\n" for line in lines)
    return (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: local-registry-hosting\n  namespace: kube-public\n"
        f"data:\n  localRegistryHosting.v1: |\n{data}"
    )
