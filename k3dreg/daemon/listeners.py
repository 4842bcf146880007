"""Opens the ports that the daemon listens on, and admits users by password files."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory

from k3dreg.oci.errors import InvalidName
from k3dreg.registry.own_names import OwnNames
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.workers import Workers
from k3dreg.web.auth import Access
from k3dreg.web.https import TlsReactor
from k3dreg.web.passwords import Passwords

log = make_logger()


class Listeners:
    """Opens ports, and sets `access`: every client may do everything, or only the users of a password file.

    At first every client may: call `admit` and then `start` before `listen`, and `shutdown` at the end.
    """

    def __init__(self, workers: Workers) -> None:
        """`workers` check passwords, and should do nothing else: a check takes a thread for up to seconds."""
        # The names of all users since the start, of all files.  Clients cannot make it grow, as only the files do.
        self._names: set[str] = set()
        self.access = Access(own_names=self._names)
        self._workers = workers
        # By file, because a reload may return to a file that was used before.
        self._passwords: dict[Path, Passwords] = {}
        self._exposed: list[str] = []

    async def start(self) -> None:
        """Read the password file, if there is one.  Raises `UsageError`."""
        for passwords in self._passwords.values():
            await passwords.start()

    def admit(self, htpasswd: Path | None, *, anonymous_pull: bool) -> None:
        """Admit only the users of this password file from the next request on; with None, every client.

        The file is read when a client first sends a password, or by `start`.  This may be called at any time.
        """
        was_open = self.access.is_open
        if htpasswd is None:
            self.access.change(None)
            if not was_open:
                self._warn_if_open()
            return
        if htpasswd not in self._passwords:
            self._passwords[htpasswd] = Passwords(htpasswd, self._workers, self._names)
        self.access.change(self._passwords[htpasswd], anonymous_pull=anonymous_pull)

    async def listen(
        self,
        endpoints: Sequence[str],
        site: IProtocolFactory,
        names: OwnNames,
        reactor: Any,
        opened: Callable[[IListeningPort], None],
    ) -> list[int]:
        """Serve `site` on each endpoint, and return the numbers of the TCP ports.

        `opened` is called with each port.  The address of a port is added to `names` if images' names may have it.
        Raises `CannotListenError` and `OSError`.
        """
        numbers: list[int] = []
        for endpoint in endpoints:
            port: IListeningPort = await serverFromString(TlsReactor(reactor), endpoint).listen(site)
            opened(port)
            address = port.getHost()
            told = describe_address(address)
            # By the words "listening on" k3d detects that a registry is ready.
            log.info("listening on {address}{tls}", address=told, tls=" (TLS)" if endpoint.startswith("ssl:") else "")
            if isinstance(address, IPv4Address | IPv6Address):
                numbers.append(address.port)
                # An address of a single link (`fe80::1%eth0`) cannot be part of an image's name.
                with contextlib.suppress(InvalidName):
                    names.learn([told] if not _ip_of(address).is_unspecified else [])
            if is_exposed(address):
                self._exposed.append(told)
        self._warn_if_open()
        return numbers

    def shutdown(self) -> None:
        """Check no more passwords.  Requests that wait for a check fail with `CancelledError`."""
        for passwords in self._passwords.values():
            passwords.shutdown()

    def _warn_if_open(self) -> None:
        if self._exposed and self.access.is_open:
            log.warn(
                "every client that reaches {addresses} can pull what Docker has, and push: ask for a password "
                "(--htpasswd FILE), or listen on this machine only (--listen tcp:5000:interface=127.0.0.1)",
                addresses=" and ".join(self._exposed),
            )


def is_exposed(address: IAddress) -> bool:
    """Return whether programs on other machines may reach the address."""
    if not isinstance(address, IPv4Address | IPv6Address):
        return False
    return not _ip_of(address).is_loopback


def _ip_of(address: IPv4Address | IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP address; an IPv4 address also for one that is mapped to IPv6 (RFC 4291, 2.5.5.2)."""
    found = ipaddress.ip_address(address.host.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def describe_address(address: IAddress) -> str:
    """Return an address as text: `0.0.0.0:5000`, `[::]:5000`, `/run/k3dreg.sock`."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        name = getattr(address, "name", None)
        return os.fsdecode(name) if name else str(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
