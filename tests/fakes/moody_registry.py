"""A registry that refuses, for engines to pull from: every path gets the one answer it was told to give."""

from __future__ import annotations

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure


@frozen
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@define(eq=False)
class MoodyRegistry(Factory):
    """`answers` are for paths that contain their key, `answer` is for all others.

    The answer for a path that contains `crawls` goes on at a few bytes a second from its half: `crawling` fires then,
    `left` when the client hangs up.
    """

    answer: Answer
    answers: dict[str, Answer]
    crawls: str
    crawling: Deferred[None]
    left: Deferred[None]

    @classmethod
    def saying(cls, answer: Answer, answers: dict[str, Answer] | None = None, crawls: str = "") -> MoodyRegistry:
        return cls(answer, answers or {}, crawls, Deferred(), Deferred())

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Conversation(self)


class _Conversation(Protocol):
    """One request, one answer."""

    def __init__(self, registry: MoodyRegistry) -> None:
        self._registry = registry
        self._heard = b""
        self._crawl: LoopingCall | None = None

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        if self._heard.startswith(b"\x16"):  # a TLS hello: engines go on with plain HTTP if told so in it
            self._say(Answer(400), False)
        elif b"\r\n\r\n" in self._heard and self._crawl is None:
            method, path = self._heard.decode("latin-1").split(" ")[:2]
            matching = (answer for part, answer in self._registry.answers.items() if part in path)
            crawls = bool(self._registry.crawls) and self._registry.crawls in path and method == "GET"
            self._say(next(matching, self._registry.answer), method == "HEAD", crawls)

    def _say(self, answer: Answer, head: bool, crawls: bool = False) -> None:
        assert self.transport is not None
        headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        length = f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n"
        self.transport.write(f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n{headers}{length}\r\n".encode())
        if crawls:
            half = len(answer.body) // 2
            self.transport.write(answer.body[:half])
            self._crawl = LoopingCall(self.transport.write, answer.body[half : half + 1])
            self._crawl.start(0.05)
            _fire(self._registry.crawling)
            return
        self.transport.write(b"" if head else answer.body)
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._crawl is not None:
            self._crawl.stop()
            _fire(self._registry.left)


def _fire(deferred: Deferred[None]) -> None:
    if not deferred.called:
        deferred.callback(None)


_PHRASES = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
}
