"""Read the ports and addresses in Twisted's endpoint strings."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

# Endpoint strings for TCP (twisted.internet.endpoints, serverFromString).
_TCP = re.compile(r"(?P<kind>tcp6?|ssl):(?:port=)?(?P<port>\d+)(?:.*?:interface=(?P<host>(?:[^:\\]|\\.)*))?(:.*)?")

# The advice for a registry to which `is_only_loopback` applies.
ONLY_LOOPBACK = "k3dreg listens on this machine's loopback address only, which no node reaches: --listen tcp:5000"


def tcp_endpoint(endpoint: str) -> tuple[str, int, str] | None:
    """Return the kind (`tcp`, `tcp6` or `ssl`), port and interface of an endpoint; None if it is not for TCP."""
    match = _TCP.fullmatch(endpoint)
    return (match["kind"], int(match["port"]), (match["host"] or "").replace("\\", "")) if match else None


def plain_ports(endpoints: Sequence[str]) -> tuple[int, ...]:
    """Return the ports on which a registry with these endpoints speaks plain HTTP."""
    found = [each for endpoint in endpoints if (each := tcp_endpoint(endpoint)) is not None]
    return tuple(dict.fromkeys(port for kind, port, _ in found if kind != "ssl" and port))


def tls_ports(endpoints: Sequence[str]) -> tuple[int, ...]:
    """Return the ports on which a registry with these endpoints speaks TLS."""
    found = [each for endpoint in endpoints if (each := tcp_endpoint(endpoint)) is not None]
    return tuple(port for kind, port, _ in found if kind == "ssl")


def is_only_loopback(endpoints: Sequence[str]) -> bool:
    """Return whether no other machine and no container reaches a registry with these endpoints."""
    found = [each for endpoint in endpoints if (each := tcp_endpoint(endpoint)) is not None]
    return bool(found) and all(_is_loopback(host) for _, _, host in found)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
