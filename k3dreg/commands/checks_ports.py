"""The ports that k3dreg listens on: free, its own, or somebody else's."""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import frozen
from treq.client import HTTPClient
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory
from twisted.web.client import Agent
from twisted.web.resource import Resource

from k3dreg.commands.checks import FAIL, OK, WARN, Check
from k3dreg.web.site import RegistrySite

# Seconds for which whoever has the port is waited for.
_PATIENCE = 5.0
# What Twisted's endpoint strings of TCP begin with (twisted.internet.endpoints, serverFromString).
_TCP = re.compile(r"(?P<kind>tcp6?|ssl):(?:port=)?(?P<port>\d+)(?:.*?:interface=(?P<host>[^:]*))?(:.*)?")


def port_of(endpoint: str) -> int:
    """The port of an endpoint string; 0 for one that is not of TCP."""
    match = _TCP.fullmatch(endpoint)
    return int(match["port"]) if match else 0


@frozen
class ListeningPort:
    """A port.  Until `close` is called somebody answers on it if `answers`: k3dreg, or this program in its place."""

    check: Check
    port: int = 0
    answers: bool = False
    close: Callable[[], Awaitable[object]] | None = None


class _Nothing(Resource):
    """Answers 404, whatever is asked for."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        request.setResponseCode(404)
        return b"{}"


def _stand_in(reactor: Any) -> IProtocolFactory:
    """A site like k3dreg's own: it turns TLS away at once, which Docker tries first."""
    site: IProtocolFactory = RegistrySite(_Nothing(), reactor=reactor)  # type: ignore[no-untyped-call]
    return site


async def knock(endpoint: str, reactor: Any) -> ListeningPort:
    """Look at the port of an endpoint string."""
    name = f"port: {endpoint}"
    match = _TCP.fullmatch(endpoint)
    port = port_of(endpoint)
    try:
        listening = await serverFromString(reactor, endpoint).listen(_stand_in(reactor))
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        if getattr(error.socketError, "errno", None) != errno.EADDRINUSE:
            return ListeningPort(Check(name, FAIL, reason, "choose another address: --listen ENDPOINT"))
        host = (match["host"] if match else "") or "127.0.0.1"
        told = await _server(f"http://{host}:{port}/healthz", reactor) if match and match["kind"] == "tcp" else None
        if told is None:
            return ListeningPort(
                Check(
                    name,
                    WARN,
                    f"{reason}: k3dreg or another program uses the port",
                    "choose another port: --listen ENDPOINT",
                ),
                port,
            )
        if told.startswith("k3dreg/"):
            return ListeningPort(
                Check(name, OK, f"k3dreg {told.removeprefix('k3dreg/')} listens there"), port, answers=True
            )
        return ListeningPort(
            Check(
                name,
                FAIL,
                "another program uses the port",
                "stop that program, or choose another port: --listen ENDPOINT",
            ),
            port,
        )
    except Exception as error:  # noqa: BLE001  (each kind of endpoint has its own ways to fail)
        return ListeningPort(
            Check(
                name, FAIL, str(getattr(error, "strerror", None) or error), "choose another address: --listen ENDPOINT"
            )
        )
    # Where any port will do, as in `tcp:0`, this one was chosen for now only.
    port = port and int(getattr(listening.getHost(), "port", 0))

    async def close() -> None:
        await listening.stopListening()

    return ListeningPort(Check(name, OK, "free"), port, answers=True, close=close)


async def _server(url: str, reactor: Any) -> str | None:
    """What the HTTP server there calls itself, "" for no name; None for what is no HTTP server."""
    client = HTTPClient(Agent(reactor))
    try:
        response = await client.get(url, timeout=_PATIENCE, reactor=reactor)
        await response.content()
    except Exception:  # noqa: BLE001  (whatever it is, it is no k3dreg)
        return None
    return str((response.headers.getRawHeaders("Server") or [""])[0])
