"""What the engine reaches: the networks of its containers, and registries.

Every function raises `EngineError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from k3dreg.docker.documents import ask
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.refusals import is_connection_failure
from k3dreg.oci.errors import EngineError

# An image that no registry has: any answer about it shows that there is a registry.
_ASKED_FOR = "k3dreg-doctor:reach"
# Seconds.  A firewall that drops packets says nothing at all.
_PATIENCE = 10.0


async def gateways(engine: IEngineRequests) -> Sequence[tuple[str, str]]:
    """Return, by name of network, the IPv4 address that the engine's host has in it."""
    found: list[tuple[str, str]] = []
    networks: Any = await ask(engine, "GET", "/networks", "the list of networks")
    for network in networks if isinstance(networks, list) else ():
        if isinstance(network, dict):
            ranges = (network.get("IPAM") or {}).get("Config") or ()
            addresses = [str(each["Gateway"]) for each in ranges if isinstance(each, dict) and each.get("Gateway")]
            found += [(str(network.get("Name")), address) for address in addresses if ":" not in address][:1]
    return sorted(found)


async def connection_failure(engine: IEngineRequests, host: str) -> str:
    """Return why the engine cannot connect to a registry at `host`; "" if it can."""
    try:
        response = await engine.request("GET", f"/distribution/{host}/{_ASKED_FOR}/json", patience=_PATIENCE)
        engine.body(response, "an answer").close()
    except EngineError as error:
        if not error.status or is_connection_failure(str(error)):
            return str(error)
    return ""
