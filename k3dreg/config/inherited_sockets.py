"""Find the listening sockets that the service manager has opened for this process: sd_listen_fds(3).

Twisted's endpoint strings for them, such as `systemd:domain=INET6:index=0`, need the socket's address family.  A socket
for all addresses is an IPv6 socket on most machines, and an IPv4 socket on others.  So this module looks at each.
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
    """Return an endpoint string for each socket that the service manager has opened; none without a service manager.

    Call it before k3dreg listens on the first of them.  Raises `usage.UsageError` for a socket that does not listen or
    is no stream socket.
    """
    found = []
    for index in itertools.count():
        try:
            # `serverFromString` would load all plugins to find the parser of `systemd:`, even Twisted's test runner.
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
