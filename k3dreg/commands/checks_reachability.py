"""Checks that Docker and its containers reach k3dreg, by each of its names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from k3dreg.commands.checks import OK, WARN, Check
from k3dreg.docker import containers
from k3dreg.docker.client import EngineClient
from k3dreg.docker.image import ImageStore
from k3dreg.docker.reach import connection_failure, gateways
from k3dreg.oci.errors import EngineError
from k3dreg.registry.own_name_discovery import as_host
from k3dreg.registry.own_names import OwnNames, names_of_container, names_of_machine

# Networks whose containers may be nodes: Docker's own and those of k3d, kind and minikube.
_OF_NODES = re.compile(r"bridge|k3d-.*|kind|minikube")
_MOST_NETWORKS = 4


async def reach_checks(
    engine: EngineClient, aliases: Sequence[str], hostname: str, ports: Sequence[int], *, answers: bool
) -> list[Check]:
    """Return the checks of this registry's names, and of who reaches it by them.

    `answers` is whether k3dreg, or this program in its place, answers on `ports`.  `hostname` is that of this machine,
    or of the container in which this program runs.  Problems are reported in the checks, and raise nothing.
    """
    try:
        names, in_container = await own_names(engine, aliases, hostname, ports)
        info = await engine.info()
        told = ", ".join(names.hosts) or "none: k3dreg does not know its ports"
        checks = [Check("names", OK, told), *_mirror(names, info.mirrors)]
        if not answers or not ports:
            return [*checks, Check("reach", WARN, "not tried: k3dreg does not answer on its ports", "see above")]
        if info.store is ImageStore.PODMAN:
            return [*checks, Check("reach", OK, "not tried: Podman looks nothing up in a registry without a pull")]
        for host in (name for name in names.hosts if name.startswith("localhost:")):
            checks.append(
                await _reached(engine, "Docker", host, "give nodes an address of this machine: k3dreg config --name")
            )
        if not in_container:
            for network, gateway in await _gateways_of_nodes(engine):
                for port in ports:
                    advice = f"listen on this address, too (--listen tcp:{port}), or open the port in the firewall"
                    checks.append(await _reached(engine, f"network {network}", f"{gateway}:{port}", advice))
    except EngineError as error:
        return [Check("reach", WARN, f"the engine did not answer: {error}", error.advice)]
    return checks


async def own_names(
    engine: EngineClient, aliases: Sequence[str], hostname: str, ports: Sequence[int]
) -> tuple[OwnNames, bool]:
    """Return the names of a daemon here, as it finds them itself, and whether this is a container of the engine.

    Raises `EngineError`.
    """
    container = await containers.inspect(engine, hostname)
    found = names_of_container(container, hostname, ports) if container is not None else ()
    return OwnNames((*aliases, *(found or names_of_machine(ports, as_host(hostname))))), bool(found)


def _mirror(names: OwnNames, mirrors: Sequence[str]) -> list[Check]:
    """Warn if this registry is one of Docker's own `mirrors`."""
    for mirror in mirrors:
        host = urlsplit(mirror).netloc
        if host and names.is_own(host):
            says = (
                f"Docker uses this registry, {host}, as its mirror: `docker pull` gets no newer image for a tag it has"
            )
            return [Check("mirror", WARN, says, "remove it from registry-mirrors in Docker's daemon.json")]
    return []


async def _gateways_of_nodes(engine: EngineClient) -> Sequence[tuple[str, str]]:
    """Return pairs of a network's name and this machine's address in it, for networks that may have nodes.

    Raises `EngineError`.
    """
    return [(name, address) for name, address in await gateways(engine) if _OF_NODES.fullmatch(name)][:_MOST_NETWORKS]


async def _reached(engine: EngineClient, who: str, host: str, advice: str) -> Check:
    failure = await connection_failure(engine, host)
    if failure:
        return Check("reach", WARN, f"{who} does not reach {host}: {failure}", advice)
    return Check("reach", OK, f"{who} reaches {host}")
