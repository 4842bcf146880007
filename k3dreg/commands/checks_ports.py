"""Checks of the ports that k3dreg listens on: free, or used by k3dreg or another program."""

from __future__ import annotations

import errno
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
from k3dreg.config.endpoints import tcp_endpoint
from k3dreg.web.site import RegistrySite

# Seconds for the program that uses the port to answer.
_MAX_WAIT = 5.0


def port_of(endpoint: str) -> int:
    """Return the port of an endpoint string; 0 if that is not for TCP."""
    found = tcp_endpoint(endpoint)
    return found[1] if found else 0


@frozen
class ListeningPort:
    """A port and the result of its check.

    `answers` is whether k3dreg, or this program in its place, answers on the port.  If `close` is not None, this
    program listens there until the caller calls it.
    """

    check: Check
    port: int = 0
    answers: bool = False
    close: Callable[[], Awaitable[object]] | None = None


class _Nothing(Resource):
    """Answers every request with 404."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        request.setResponseCode(404)
        return b"{}"


def _stand_in(reactor: Any) -> IProtocolFactory:
    """Return a site that, as k3dreg's own, refuses TLS at once: Docker tries TLS first, and would wait."""
    site: IProtocolFactory = RegistrySite(_Nothing(), reactor=reactor)  # type: ignore[no-untyped-call]
    return site


async def try_endpoint(endpoint: str, reactor: Any) -> ListeningPort:
    """Check the port of an endpoint string by listening there; if it is in use, by a request for its server."""
    name = f"port: {endpoint}"
    kind, port, interface = tcp_endpoint(endpoint) or ("", 0, "")
    try:
        listening = await serverFromString(reactor, endpoint).listen(_stand_in(reactor))
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        if getattr(error.socketError, "errno", None) != errno.EADDRINUSE:
            return ListeningPort(Check(name, FAIL, reason, "choose another address: --listen ENDPOINT"))
        told = await _server(f"http://{interface or '127.0.0.1'}:{port}/healthz", reactor) if kind == "tcp" else None
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
    except Exception as error:  # noqa: BLE001  (each kind of endpoint raises other errors)
        return ListeningPort(
            Check(
                name, FAIL, str(getattr(error, "strerror", None) or error), "choose another address: --listen ENDPOINT"
            )
        )
    # For any free port (`tcp:0`) the daemon will have another one, so this one is reported as 0.
    port = port and int(getattr(listening.getHost(), "port", 0))

    async def close() -> None:
        await listening.stopListening()

    return ListeningPort(Check(name, OK, "free"), port, answers=True, close=close)


async def _server(url: str, reactor: Any) -> str | None:
    """Return the `Server` header of the HTTP server at `url`, "" without one; None if there is no HTTP server."""
    client = HTTPClient(Agent(reactor))
    try:
        response = await client.get(url, timeout=_MAX_WAIT, reactor=reactor)
        await response.content()
    except Exception:  # noqa: BLE001  (any error means that it is no k3dreg)
        return None
    return str((response.headers.getRawHeaders("Server") or [""])[0])
