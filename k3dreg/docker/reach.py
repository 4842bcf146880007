"""Requests about what the engine can reach: the networks of its containers, and registries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from k3dreg.docker.documents import ask
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.refusals import is_connection_failure
from k3dreg.oci.errors import EngineError

# An image that no registry has.  Any answer about it shows that a registry has answered.
_ASKED_FOR = "k3dreg-doctor:reach"
# Seconds.  If a firewall drops the engine's packets, no answer comes.
_MAX_WAIT = 10.0


async def gateways(engine: IEngineRequests) -> Sequence[tuple[str, str]]:
    """Return pairs of a network's name and the IPv4 address of the engine's host in it.  Raises `EngineError`."""
    found: list[tuple[str, str]] = []
    networks: Any = await ask(engine, "GET", "/networks", "the list of networks")
    for network in networks if isinstance(networks, list) else ():
        if isinstance(network, dict):
            ranges = (network.get("IPAM") or {}).get("Config") or ()
            addresses = [str(each["Gateway"]) for each in ranges if isinstance(each, dict) and each.get("Gateway")]
            found += [(str(network.get("Name")), address) for address in addresses if ":" not in address][:1]
    return sorted(found)


async def connection_failure(engine: IEngineRequests, host: str) -> str:
    """Return why the engine cannot connect to a registry at `host`, or why it did not answer; "" if it can connect."""
    try:
        response = await engine.request("GET", f"/distribution/{host}/{_ASKED_FOR}/json", max_wait=_MAX_WAIT)
        engine.body(response, "an answer").close()
    except EngineError as error:
        if not error.status or is_connection_failure(str(error)):
            return str(error)
    return ""
