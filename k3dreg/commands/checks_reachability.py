"""Whether Docker, and the containers that it runs, can reach k3dreg, and by which names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from k3dreg.commands.checks import OK, WARN, Check
from k3dreg.docker.client import Engine
from k3dreg.docker.documents import ask
from k3dreg.docker.image import ImageStore
from k3dreg.oci.errors import EngineError
from k3dreg.registry.own_name_discovery import as_host
from k3dreg.registry.own_names import OwnNames, names_of_container, names_of_machine

# An image of nobody's: what is asked for is whether anybody answers.
_ASKED_FOR = "k3dreg-doctor:reach"
# Seconds.  A firewall that drops packets says nothing at all.
_PATIENCE = 10.0
# The engine's words (those of Go's net package) for a connection that did not come about.
_NOT_REACHED = re.compile(
    r"dial (tcp|udp)|i/o timeout|deadline exceeded|no such host|no route to host|unreachable|proxyconnect"
    r"|connection refused|connection reset",
    re.IGNORECASE,
)
# Networks whose containers may be nodes: Docker's own and those of k3d, kind and minikube.
_OF_NODES = re.compile(r"bridge|k3d-.*|kind|minikube")
_MOST_NETWORKS = 4


async def reach_checks(
    engine: Engine, aliases: Sequence[str], hostname: str, ports: Sequence[int], *, answers: bool
) -> list[Check]:
    """The names of this registry, and who reaches it by them.  `answers`: somebody does on `ports`.

    `hostname` is that of this machine, or of the container that this is.  Raises nothing for what is wrong.
    """
    try:
        names, in_container = await own_names(engine, aliases, hostname, ports)
        told = ", ".join(names.hosts) or "none: k3dreg does not know its ports"
        checks = [Check("names", OK, told), *_mirror(names, await ask(engine, "GET", "/info"))]
        if not answers or not ports:
            return [*checks, Check("reach", WARN, "not tried: k3dreg does not answer on its ports", "see above")]
        if (await engine.info()).store is ImageStore.PODMAN:
            return [*checks, Check("reach", OK, "not tried: Podman looks nothing up in a registry without a pull")]
        for host in (name for name in names.hosts if name.startswith("localhost:")):
            checks.append(
                await _reached(engine, "Docker", host, "give nodes an address of this machine: k3dreg config --name")
            )
        if not in_container:
            for network, gateway in await _gateways(engine):
                for port in ports:
                    advice = f"listen on it too (--listen tcp:{port}), or let the firewall pass it"
                    checks.append(await _reached(engine, f"network {network}", f"{gateway}:{port}", advice))
    except EngineError as error:
        return [Check("reach", WARN, f"the engine did not answer: {error}", error.advice)]
    return checks


async def own_names(
    engine: Engine, aliases: Sequence[str], hostname: str, ports: Sequence[int]
) -> tuple[OwnNames, bool]:
    """What a daemon here is called, as it finds out when it starts; and whether this is a container of the engine's.

    Raises `EngineError`.
    """
    container = await _container(engine, hostname, ports)
    return OwnNames((*aliases, *(container or names_of_machine(ports, as_host(hostname))))), bool(container)


def _mirror(names: OwnNames, info: Any) -> list[Check]:
    """A warning if Docker has this registry for its own mirror.  `info` is what `GET /info` says."""
    config = info.get("RegistryConfig") if isinstance(info, dict) else None
    mirrors = config.get("Mirrors") if isinstance(config, dict) else None
    for mirror in mirrors if isinstance(mirrors, list) else ():
        host = urlsplit(str(mirror)).netloc
        if host and names.is_own(host):
            says = f"Docker's own mirror is {host}, this registry: `docker pull` never gets a newer image for a tag"
            return [Check("mirror", WARN, says, "take it out of registry-mirrors in Docker's daemon.json")]
    return []


async def _container(engine: Engine, hostname: str, ports: Sequence[int]) -> tuple[str, ...]:
    """The names of the container that this is; none where it is none."""
    try:
        inspected = await ask(engine, "GET", f"/containers/{quote(hostname, safe='')}/json")
    except EngineError as error:
        if error.status == 404:
            return ()
        raise
    return names_of_container(inspected, hostname, ports) if isinstance(inspected, dict) else ()


async def _gateways(engine: Engine) -> list[tuple[str, str]]:
    """By name of network, the address that this machine has in it.  Raises `EngineError`."""
    found: list[tuple[str, str]] = []
    networks: Any = await ask(engine, "GET", "/networks")
    for network in networks if isinstance(networks, list) else ():
        if isinstance(network, dict) and _OF_NODES.fullmatch(str(network.get("Name"))):
            ranges = (network.get("IPAM") or {}).get("Config") or ()
            addresses = [str(each["Gateway"]) for each in ranges if isinstance(each, dict) and each.get("Gateway")]
            found += [(str(network["Name"]), address) for address in addresses if ":" not in address][:1]
    return sorted(found)[:_MOST_NETWORKS]


async def _reached(engine: Engine, who: str, host: str, advice: str) -> Check:
    """Docker is asked what an image is in a registry at `host`: what it says but of the network is a sign of one."""
    try:
        await engine.request("GET", f"/distribution/{host}/{_ASKED_FOR}/json", patience=_PATIENCE)
    except EngineError as error:
        if not error.status or _NOT_REACHED.search(str(error)):
            return Check("reach", WARN, f"{who} does not reach {host}: {error}", advice)
    return Check("reach", OK, f"{who} reaches {host}")
