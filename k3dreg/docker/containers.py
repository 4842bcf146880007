"""Containers in the engine.

Every function raises `EngineError`.  What the engine does not tell, or tells in another shape, is empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from attrs import frozen

from k3dreg.docker.documents import ask
from k3dreg.docker.engine import IEngineRequests
from k3dreg.docker.members import mapping, text, texts
from k3dreg.oci.errors import EngineError

# Seconds.  Each request here takes the engine some ten milliseconds; to start a container takes some hundred.
_PATIENCE = 20.0


@frozen
class Container:
    """A container as the engine describes it.

    `tcp_ports` are pairs of a port in the container and the host's port that leads to it; `aliases` are the names
    that the container has in its networks.
    """

    name: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = {}
    tcp_ports: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()


async def inspect(engine: IEngineRequests, name: str) -> Container | None:
    """Return the container of this name or ID; None if the engine has none."""
    path = f"/containers/{quote(name, safe='')}/json"
    try:
        return parse_container(await ask(engine, "GET", path, "a container's description", patience=_PATIENCE))
    except EngineError as error:
        if error.status == 404:
            return None
        raise


def parse_container(told: object) -> Container:
    """Return the container of an answer to `GET /containers/{name}/json`."""
    described = mapping(told)
    config, network = mapping(described.get("Config")), mapping(described.get("NetworkSettings"))
    bindings = mapping(mapping(described.get("HostConfig")).get("PortBindings"))
    return Container(
        name=text(described.get("Name")).lstrip("/"),
        hostname=text(config.get("Hostname")),
        labels=texts(config.get("Labels")),
        tcp_ports=(*_tcp_ports(mapping(network.get("Ports"))), *_tcp_ports(bindings)),
        aliases=tuple(
            str(alias)
            for joined in mapping(network.get("Networks")).values()
            if isinstance(aliases := mapping(joined).get("Aliases"), list)
            for alias in aliases
        ),
    )


def _tcp_ports(bindings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Docker writes `{"5000/tcp": [{"HostPort": "5005"}]}`."""
    for name, targets in bindings.items():
        port, _, protocol = name.partition("/")
        if protocol in ("", "tcp") and isinstance(targets, list):
            for target in targets:
                # Port 0 is "any", written where the container was made; what was chosen is in NetworkSettings.
                if (chosen := str(mapping(target).get("HostPort") or "0")) != "0":
                    yield port, chosen
