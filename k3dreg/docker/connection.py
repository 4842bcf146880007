"""Requests to the Engine API: version negotiation, time limits, and foreign exceptions turned into k3dreg's own."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from treq.client import HTTPClient
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse

from k3dreg.docker.engine_tls import explain_refusal
from k3dreg.docker.messages import error_message, parse_version, readable
from k3dreg.docker.ssh_forward import TunnelFailed
from k3dreg.oci.errors import EngineError, EngineSilent, EngineTooOld, EngineUnavailable
from k3dreg.oci.user_agent import USER_AGENT
from k3dreg.streaming.connection_errors import CONNECTION_ERRORS, causes, was_cancelled
from k3dreg.streaming.response_body import ResponseBody, read_whole

Params = Mapping[str, str | list[str]]
Version = tuple[int, int]

# The API of engine 20.10, the oldest engine that is still in use and that was tested.
OLDEST = (1, 41)
# The API of engine 28.5, the newest that was tested.  Newer engines accept it, too: 29 refuses only those below 1.44.
NEWEST = (1, 51)
# Bytes of an answer that is one JSON document.  The largest is the inspection of an index with many children, with some
# hundred KiB; a longer answer does not come from an engine.
LARGEST_ANSWER = 16 * 1024 * 1024
# Bytes of an error answer.  Engines quote HTML pages of registries in them.
LARGEST_COMPLAINT = 1024 * 1024

_WRONG_VERSION = re.compile(r"client version \S+ is too (new|old)")


class Connection:
    """An HTTP client of one engine.

    `generation` counts how often the connection to the engine was lost.  What was learned in an earlier generation may
    be outdated, because another engine may answer now.  `silence` is the default time limit, in seconds.
    """

    def __init__(self, agent: IAgent, clock: IReactorTime, *, base: str, silence: float) -> None:
        self._http = HTTPClient(agent)
        self._clock = clock
        self._base = base
        self._silence = silence
        self._version: Version | None = None
        self.generation = 0

    # -- versions -------------------------------------------------------------------------------

    async def api_version(self) -> Version:
        """Return the newest API version that both sides support.

        It comes from `GET /_ping` and is remembered until the engine is lost.  Raises `EngineTooOld`,
        `EngineUnavailable` or `EngineError`.
        """
        if self._version is None:
            response = await self.request("GET", "/_ping", versioned=False)
            await read_whole(self.body(response, "its greeting"), LARGEST_COMPLAINT)
            told = response.headers.getRawHeaders("api-version") or [""]
            theirs = parse_version(told[0])
            if theirs < OLDEST:
                raise EngineTooOld(
                    f"the engine's API is {told[0]}; k3dreg needs {_spell(OLDEST)} or newer",
                    advice="upgrade to Docker 20.10 or newer",
                )
            self._version = min(theirs, NEWEST)
        return self._version

    def forget(self) -> None:
        """Forget the API version and start a new generation, because another engine may answer from now on."""
        self._version = None
        self.generation += 1

    # -- requests -------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | IBodyProducer | None = None,
        versioned: bool = True,
        max_wait: float | None = None,
    ) -> IResponse:
        """Send a request, and return the head of an answer with a status below 400.

        The caller must pass the answer to `body`, and read that or close it.  `path` begins with a slash and is
        percent-encoded; `versioned` puts the API version before it.  `max_wait` is how long, in seconds, the head may
        take (default: the silence limit).

        Raises `EngineError` with the status and the engine's message for a status of 400 or more, `EngineUnavailable`
        or `EngineSilent`.  Cancelling closes the connection, which makes the engine stop the work.
        """
        limit = self._silence if max_wait is None else max_wait
        prefix = f"/v{_spell(await self.api_version())}" if versioned else ""
        response = await self._send(method, prefix + path, params, headers, data, limit)
        if response.code < 400:
            return response
        message = await self._complaint(response)
        if not versioned or response.code != 400 or not _WRONG_VERSION.search(message):
            raise _as_error(response.code, message)
        # The engine was replaced by another version since `api_version` was called.
        self.forget()
        if data is not None and not isinstance(data, bytes):  # a producer can send its bytes only once
            raise EngineUnavailable("the engine was replaced by another version; ask again", status=400)
        prefix = f"/v{_spell(await self.api_version())}"
        response = await self._send(method, prefix + path, params, headers, data, limit)
        if response.code < 400:
            return response
        message = await self._complaint(response)
        if response.code == 400 and _WRONG_VERSION.search(message):
            raise EngineTooOld(
                f"the engine and k3dreg have no API version in common: {readable(message)}",
                advice=f"use a newer k3dreg, or an engine whose oldest API version is not above {_spell(NEWEST)}",
            )
        raise _as_error(response.code, message)

    async def get_json(self, path: str, params: Params | None = None) -> Any:
        """Return the JSON document at `path`.  Raises as `request`, and `EngineError` if the answer is not JSON."""
        return await self.read_json(await self.request("GET", path, params=params))

    async def read_json(self, response: IResponse) -> Any:
        """Return the JSON document in an answer's body.  Raises `EngineError` if it is not JSON."""
        text = await read_whole(self.body(response, "an answer"), LARGEST_ANSWER)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EngineError("the engine's answer is not JSON") from error

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> ResponseBody:
        """Return the body of an answer, which the caller must read to its end or close.

        `what` names it in errors: "the connection was lost in the middle of ...".  `silence` is how long, in seconds,
        the engine may send nothing while the caller reads (default: the silence limit).
        """
        limit = self._silence if silence is None else silence
        return ResponseBody(response, self._clock, silence=limit, what=what, broke=self.forget)

    async def _complaint(self, response: IResponse) -> str:
        """Return the message of an error answer, as the engine sent it."""
        text = await read_whole(self.body(response, "an error message"), LARGEST_COMPLAINT)
        return error_message(text)

    async def _send(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Mapping[str, str] | None,
        data: bytes | IBodyProducer | None,
        limit: float,
    ) -> IResponse:
        def silent(_result: object, _seconds: float) -> NoReturn:
            raise EngineSilent(f"the engine did not answer for {limit:.0f} s")

        sent: Deferred[Any] = self._http.request(
            method,
            self._base + path,
            params=dict(params or {}),
            headers=Headers({"User-Agent": [USER_AGENT], **{name: [value] for name, value in (headers or {}).items()}}),
            data=data,
            allow_redirects=False,  # the Engine API has no redirects, and an image's name must not cause one
            unbuffered=True,  # otherwise treq keeps the whole body in memory
            reactor=self._clock,  # type: ignore[arg-type]  # otherwise treq imports the global reactor
        )
        sent.addTimeout(limit, self._clock, silent)
        try:
            response: IResponse = await sent
        except EngineSilent:
            self.forget()
            raise
        except CONNECTION_ERRORS as error:
            if was_cancelled(error):
                raise CancelledError from error
            self.forget()
            raise _explain(error) from error
        return response


def _spell(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _as_error(status: int, message: str) -> EngineError:
    return EngineError(readable(message) or f"the engine answered with status {status}", status=status)


def _explain(error: Exception) -> EngineUnavailable:
    """Return the error for an engine that could not be reached: why, and what to do.

    It names no paths of sockets, because nodes see the text.
    """
    if isinstance(error, net.ConnectionRefusedError):
        return EngineUnavailable("Docker is not running: its socket refuses connections", advice="start Docker")
    for cause in causes(error):
        if isinstance(cause, TunnelFailed):
            return EngineUnavailable(
                f"Docker cannot be reached over ssh: {cause}",
                advice="try `ssh HOST docker version` as k3dreg's user; ssh must not ask for a password or a host key. "
                "If Docker's socket is not /var/run/docker.sock there, name it: ssh://HOST/path/docker.sock",
            )
        if refusal := explain_refusal(cause):
            return EngineUnavailable(
                f"the TLS connection to Docker failed: {refusal}",
                advice="see DOCKER_CERT_PATH (ca.pem, cert.pem, key.pem) and the engine's own certificate",
            )
    number = getattr(error, "osError", None)
    if number == errno.ENOENT:
        return EngineUnavailable(
            "Docker cannot be reached: its socket does not exist",
            advice="start Docker, or tell k3dreg where its socket is (--docker or DOCKER_HOST)",
        )
    if number in (errno.EACCES, errno.EPERM):
        return EngineUnavailable(
            "Docker cannot be reached: permission to its socket is denied",
            advice="run k3dreg as a user that may use the socket, e.g. one in the group docker",
        )
    if isinstance(error, net.TimeoutError):
        return EngineUnavailable("Docker cannot be reached: the connection timed out")
    if isinstance(error, net.DNSLookupError):
        return EngineUnavailable("Docker cannot be reached: its host name does not resolve")
    if isinstance(error, net.ConnectError):
        return EngineUnavailable("Docker cannot be reached: the connection failed")
    return EngineUnavailable("the connection to Docker was lost before it answered")
