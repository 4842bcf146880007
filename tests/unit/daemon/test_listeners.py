"""Whom a daemon warns of, and of what."""

from __future__ import annotations

from pathlib import Path

import bcrypt
import pytest
from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from k3dreg.config.options import Options
from k3dreg.daemon.listeners import Listeners, describe_address, is_exposed
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.registry.own_names import OwnNames
from tests.fakes.logs import heard
from tests.fakes.workers import InlineWorkers


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


class FakeReactor(Clock):
    """Listens where it is told to."""

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> FakePort:
        kind = IPv6Address if ":" in interface else IPv4Address
        return FakePort(kind("TCP", interface or "0.0.0.0", port))

    def listenUNIX(self, address: str, factory: IProtocolFactory, *more: object, **others: object) -> FakePort:
        return FakePort(UNIXAddress(address))


@frozen
class FakePort:
    address: IAddress

    def getHost(self) -> IAddress:
        return self.address


def listened(*endpoints: str) -> tuple[list[int], tuple[str, ...]]:
    """The numbers of the ports, and the names that were learned."""
    options = Options({"HOME": "/home/someone"})
    options.parseOptions([word for endpoint in endpoints for word in ("--listen", endpoint)])
    names, found, opened = OwnNames(), list[int](), list[object]()
    door = Listeners(InlineWorkers())
    work = door.listen(options.config.listen, Factory(), names, FakeReactor(), opened.append)
    Deferred.fromCoroutine(work).addCallback(found.extend)
    assert len(opened) == len(endpoints)
    return found, names.hosts


def test_an_address_that_is_listened_on_is_a_name_of_this_registry() -> None:
    assert listened("tcp:5000:interface=192.168.1.5") == ([5000], ("192.168.1.5:5000",))
    assert listened(r"tcp6:5000:interface=fd00\:\:2") == ([5000], ("[fd00::2]:5000",))
    assert listened(r"tcp6:5000:interface=\:\:1", "tcp:5001:interface=127.0.0.1") == (
        [5000, 5001],
        ("[::1]:5000", "127.0.0.1:5001"),
    )


def test_an_address_that_stands_for_all_is_no_name_and_nor_is_a_file() -> None:
    assert listened("tcp:5000", r"tcp6:5001:interface=\:\:", "unix:/tmp/x") == ([5000, 5001], ())
    assert listened(r"tcp6:5000:interface=fe80\:\:1%eth0") == ([5000], ())


def test_a_registry_that_becomes_open_is_warned_of_once() -> None:
    listeners = Listeners(InlineWorkers())
    with heard() as lines:
        work = listeners.listen(("tcp:5000",), Factory(), OwnNames(), FakeReactor(), lambda port: None)
        Deferred.fromCoroutine(work)
        for htpasswd in (None, Path("htpasswd"), Path("htpasswd"), None, None):
            listeners.admit(htpasswd, anonymous_pull=False)
    assert len([line for line in lines if "every client that reaches 0.0.0.0:5000" in line]) == 2


def test_no_password_is_checked_after_a_shutdown(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"anna:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    listeners = Listeners(InlineWorkers())
    listeners.admit(path, anonymous_pull=False)
    listeners.shutdown()
    failed: list[Failure] = []
    asked = Deferred.fromCoroutine(listeners._passwords[path].knows(BasicAuth("anna", "secret")))
    asked.addErrback(failed.append)
    assert failed[0].check(CancelledError)
