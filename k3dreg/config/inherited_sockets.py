"""Listening sockets that the service manager has opened for this process: sd_listen_fds(3).

Twisted takes them by `systemd:domain=INET6:index=0` or `systemd:domain=INET6:name=k3dreg.socket`; but whether a socket
for all addresses is an IPv6 or an IPv4 one is the machine's choice, and the first is right on most of them only.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import cast

from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.plugins.twisted_core import systemdEndpointParser
from twisted.python import usage


def inherited_endpoints() -> tuple[str, ...]:
    """An endpoint string for each such socket; none where no service manager opened any.

    To be called before the first of them is listened on.  Raises `usage.UsageError` for one that is of no use here.
    """
    found = []
    for index in itertools.count():
        try:
            # Not by `serverFromString`: that looks through all plugins there are for `systemd:`, and so loads what they
            # need, Twisted's test runner too.
            endpoint = systemdEndpointParser.parseStreamServer(None, domain="INET", index=str(index))
        except IndexError:
            break
        descriptor = cast(AdoptedStreamServerEndpoint, endpoint).fileno
        with socket.socket(fileno=os.dup(descriptor)) as inherited:
            if inherited.type != socket.SOCK_STREAM or not inherited.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                raise usage.UsageError("the service manager's socket unit needs ListenStream= and Accept=no, no others")
            domain = inherited.family.name.removeprefix("AF_")
        found.append(f"systemd:domain={domain}:index={index}")
    return tuple(found)
