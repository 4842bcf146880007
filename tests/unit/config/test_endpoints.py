"""Ports and addresses in endpoint strings."""

from __future__ import annotations

import pytest

from k3dreg.config.endpoints import is_only_loopback, plain_ports, tls_ports

TLS = "ssl:5443:privateKey=k.pem:certKey=c.pem"


@pytest.mark.parametrize(
    ("endpoints", "plain", "tls", "loopback"),
    [
        (["tcp:5000"], (5000,), (), False),
        (["tcp:port=5000:interface=127.0.0.1"], (5000,), (), True),
        (["tcp:5000:interface=localhost", r"tcp6:5000:interface=\:\:1"], (5000,), (), True),
        (["tcp:5000:interface=127.0.0.1", "tcp:5000:interface=172.17.0.1"], (5000,), (), False),
        ([TLS, "tcp:5000:interface=127.0.0.1"], (5000,), (5443,), False),
        ([f"{TLS}:interface=127.0.0.2"], (), (5443,), True),
        (["unix:/run/k3dreg.sock", "systemd:domain=INET:index=0"], (), (), False),
        (["tcp:0"], (), (), False),
    ],
)
def test_ports_and_loopback(endpoints: list[str], plain: tuple[int, ...], tls: tuple[int, ...], loopback: bool) -> None:
    assert (plain_ports(endpoints), tls_ports(endpoints), is_only_loopback(endpoints)) == (plain, tls, loopback)
