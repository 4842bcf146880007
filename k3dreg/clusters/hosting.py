"""How programs that push into a cluster's registry find it: KEP-1755, the ConfigMap `local-registry-hosting`.

Tilt pushes to `host` and puts `hostFromContainerRuntime` into pods; Skaffold reads `host` alone and puts that into
pods, too, which works because a node whose mirror is k3dreg asks k3dreg for `localhost:…` as well.
"""

from __future__ import annotations

from k3dreg.clusters.place import Place

_LOOPBACK = ("localhost", "127.", "[::1]")


def config_map(place: Place, host: str = "") -> str:
    """To be applied with kubectl.  `host` is what programs on the host call it, where that is not `localhost`."""
    lines = [f'host: "{host or place.host_address}"', f'hostFromContainerRuntime: "{place.address}"']
    # A pod's loopback is its own.
    if not place.name.startswith(_LOOPBACK):
        lines.append(f'hostFromClusterNetwork: "{place.address}"')
    data = "".join(f"    {line}\n" for line in lines)
    return (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: local-registry-hosting\n  namespace: kube-public\n"
        f"data:\n  localRegistryHosting.v1: |\n{data}"
    )
