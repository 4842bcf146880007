"""Whom a daemon warns of, and of what."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from k3dreg.door import describe_address, is_exposed


@pytest.mark.parametrize(
    ("address", "exposed", "told"),
    [
        (IPv4Address("TCP", "127.0.0.1", 5000), False, "127.0.0.1:5000"),
        (IPv4Address("TCP", "127.1.2.3", 5000), False, "127.1.2.3:5000"),
        (IPv4Address("TCP", "0.0.0.0", 5000), True, "0.0.0.0:5000"),
        (IPv4Address("TCP", "172.17.0.1", 5000), True, "172.17.0.1:5000"),
        (IPv6Address("TCP", "::1", 5000), False, "[::1]:5000"),
        (IPv6Address("TCP", "::", 5000), True, "[::]:5000"),
        (IPv6Address("TCP", "fe80::1%eth0", 5000), True, "[fe80::1%eth0]:5000"),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 5000), False, "[::ffff:127.0.0.1]:5000"),
        (UNIXAddress("/run/k3dreg.sock"), False, "/run/k3dreg.sock"),
    ],
)
def test_what_other_machines_may_reach(address: IAddress, exposed: bool, told: str) -> None:
    assert is_exposed(address) is exposed
    assert describe_address(address) == told
