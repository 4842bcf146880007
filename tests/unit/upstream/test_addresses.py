"""Which hosts are this machine, whatever they are called."""

from __future__ import annotations

import pytest

from k3dreg.upstream.addresses import hostname_of, is_local_host

LOCAL = [
    *("localhost", "LOCALHOST:5000", "localhost.", "registry.localhost:5000", "localhost.localdomain", "ip6-loopback"),
    *("127.0.0.1", "127.0.0.1:6443", "127.1:80", "127.255.255.254", "2130706433:80", "0x7f000001:80", "0x7f.1:80"),
    *("017700000001:80", "0.0.0.0:5000", "0:80", "169.254.169.254", "169.254.1.1:80", "2852039166:80"),
    *(
        "[::1]:5000",
        "[::]:5000",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:7f00:1]",
        "[::ffff:169.254.169.254]",
        "[fe80::1]:80",
    ),
    *("[::127.0.0.1]:80", "[64:ff9b::7f00:1]:80", "[fd00:ec2::254]", "[0:0:0:0:0:0:0:1]:80"),
    *("host.docker.internal:5000", "host.k3d.internal:5000", "host.containers.internal", "metadata.google.internal"),
]
OTHERS = [
    *("docker.io", "ghcr.io:443", "localhost.example.com", "127.0.0.1.example", "notlocalhost", "128.0.0.1:80"),
    *("192.168.1.1:5000", "10.0.0.1", "[2001:db8::1]:5000", "[fd00::1]:5000", "[::ffff:10.0.0.1]:80", "registry:5000"),
    *("", ":", "[", "[]:80", "a:b:c", "4294967296:80", "host.docker.internal.example"),
]


@pytest.mark.parametrize("host", LOCAL)
def test_every_way_to_write_this_machine_or_its_link_counts(host: str) -> None:
    assert is_local_host(host)


@pytest.mark.parametrize("host", OTHERS)
def test_others_are_others(host: str) -> None:
    assert not is_local_host(host)


def test_a_host_is_without_its_port() -> None:
    hosts = ["A.example:80", "a.example", "[::1]:80", "[::1]", "127.1:", "::1"]
    assert list(map(hostname_of, hosts)) == ["a.example", "a.example", "::1", "::1", "127.1", "::1"]
