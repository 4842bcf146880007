"""Recognise hosts that are this machine or on its link, by every name and every form of address."""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Names of the machine, on the machine itself or in its containers (Docker Desktop, k3d, Podman, Lima, minikube), and
# the names of Google Cloud's metadata service, which is on a virtual machine's link.
_NAMES = frozenset(
    {
        *("localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"),
        *("host.docker.internal", "gateway.docker.internal", "kubernetes.docker.internal", "host.k3d.internal"),
        *("host.containers.internal", "host.lima.internal", "host.minikube.internal"),
        *("metadata.google.internal", "metadata"),
    }
)
# IPv6 addresses with an IPv4 address in their last 32 bits: IPv4-compatible (RFC 4291, 2.5.5.1) and NAT64 (RFC 6052).
_HOLDS_IPV4 = (ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("64:ff9b::/96"))
# Addresses of this network lead to the machine itself ("this host on this network", RFC 1122, 3.2.1.3).
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
# Amazon's metadata service over IPv6; over IPv4 it is a link-local address.
_METADATA = ipaddress.IPv6Address("fd00:ec2::254")


def hostname_of(host: str) -> str:
    """Return a host in lower case, without its port, brackets and a trailing dot."""
    name = host.lower()
    head, colon, port = name.rpartition(":")
    if colon and (not port or port.isdecimal()) and (":" not in head or head.endswith("]")):
        name = head
    return name.strip("[]").removesuffix(".")


def address_of(host: str) -> Address | None:
    """Return the IP address of a host that is written as an address, with or without a port; None for a name.

    An IPv4 address may have every form that inet_aton(3) accepts, and so a resolver: `127.1`, `2130706433`,
    `0x7f000001`.
    """
    name = hostname_of(host)
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(name)) if name.isascii() else None
    except OSError:
        return None


def is_local(address: Address) -> bool:
    """Return whether an address is loopback, link-local or unspecified, or a cloud's metadata service.

    These are the machine itself, and hosts that only the machine's own link reaches.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_local(address.ipv4_mapped)
        if address.is_loopback or address.is_unspecified or address == _METADATA:
            return True
        if any(address in network for network in _HOLDS_IPV4):
            return is_local(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return address.is_link_local
    return address.is_loopback or address.is_link_local or address in _THIS_NETWORK


def is_local_host(host: str) -> bool:
    """Return whether a host, with or without a port, is a local address or a known local name.  It is not resolved."""
    address = address_of(host)
    if address is not None:
        return is_local(address)
    name = hostname_of(host)
    return name in _NAMES or name.endswith(".localhost")
