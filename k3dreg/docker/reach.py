"""Requests about networks: those of containers, and what the engine reaches in registries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from k3dreg.docker.documents import ask, post
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


async def connect(engine: IEngineRequests, network: str, container: str, alias: str) -> None:
    """Put a container into a network, where it also has the name `alias`.  Raises `EngineError`."""
    await _change(engine, network, "connect", {"Container": container, "EndpointConfig": {"Aliases": [alias]}})


async def disconnect(engine: IEngineRequests, network: str, container: str) -> None:
    """Take a container out of a network.  It is no error if one of them is gone.  Raises `EngineError`."""
    try:
        await _change(engine, network, "disconnect", {"Container": container, "Force": True})
    except EngineError as error:
        if error.status != 404:
            raise


async def _change(engine: IEngineRequests, network: str, how: str, body: dict[str, Any]) -> None:
    await post(engine, f"/networks/{quote(network, safe='')}/{how}", body, max_wait=_MAX_WAIT)


async def connection_failure(engine: IEngineRequests, host: str) -> str:
    """Return why the engine cannot connect to a registry at `host`, or why it did not answer; "" if it can connect."""
    try:
        response = await engine.request("GET", f"/distribution/{host}/{_ASKED_FOR}/json", max_wait=_MAX_WAIT)
        engine.body(response, "an answer").close()
    except EngineError as error:
        if not error.status or is_connection_failure(str(error)):
            return str(error)
    return ""
