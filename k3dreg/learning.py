"""Finding out what this registry is called, from its sockets and from the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from k3dreg.interfaces import IEngineRequests, IImageNames
from k3dreg.log import make_logger
from k3dreg.model.errors import EngineError, InvalidName, InvalidReference
from k3dreg.model.reference import Repository, Tag
from k3dreg.names import OwnNames, names_of_container, names_of_machine
from k3dreg.streaming.bodies import read_whole

log = make_logger()

# Bytes.  A container's description has some ten KiB; the list of a thousand images about one MiB.
_LARGEST_ANSWER = 32 * 1024 * 1024
# Seconds until an engine that could not be asked is asked again: it may be started together with this daemon.
_AGAIN = 2.0


async def learn_names(names: OwnNames, engine: IEngineRequests, hostname: str, ports: Sequence[int]) -> None:
    """Learn what this registry, which listens on `ports`, is called.

    In a container the machine's names are those of its *published* port, so the container is looked up, by its own
    hostname; elsewhere they are those of the port itself.  Raises `EngineError` when the engine cannot be asked: try
    again later.
    """
    try:
        inspected = await _get(engine, f"/containers/{quote(hostname, safe='')}/json", "a container's description")
    except EngineError as error:
        if error.status != 404:
            raise
        inspected = {}
    found = names_of_container(inspected, hostname, ports) if isinstance(inspected, dict) else ()
    new = names.learn(found or names_of_machine(ports, _as_host(hostname)))
    if new:
        log.info("this registry is also {names}", names=", ".join(new))


async def keep_learning(
    names: OwnNames, engine: IEngineRequests, hostname: str, ports: Sequence[int], clock: IReactorTime
) -> None:
    """`learn_names`, again and again until the engine can be asked.  Cancelling ends it."""
    while True:
        try:
            await learn_names(names, engine, hostname, ports)
        except EngineError as error:
            log.debug("this registry's names are not known yet: {error}", error=error)
            await deferLater(clock, _AGAIN)
        else:
            return


@implementer(IImageNames)
class EngineImageNames:
    """The engine's list of images."""

    def __init__(self, engine: IEngineRequests) -> None:
        self._engine = engine

    async def names(self) -> Sequence[tuple[Repository, Tag]]:
        """Names that do not parse are left out: nobody could ask for them."""
        images = await _get(self._engine, "/images/json", "the list of images")
        texts = [
            text
            for image in (images if isinstance(images, list) else ())
            for text in ((image.get("RepoTags") or ()) if isinstance(image, dict) else ())
        ]
        return [name for name in map(_name, texts) if name is not None]


def _name(text: object) -> tuple[Repository, Tag] | None:
    """`localhost:5005/app:t`, `team/app:t`, `app:t`; not `<none>:<none>`."""
    whole, _, tag = str(text).rpartition(":")
    first, slash, rest = whole.partition("/")
    # As Docker tells a registry from the first part of a path.
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    try:
        return Repository.parse(rest, first) if is_host else Repository.parse(whole), Tag.parse(tag)
    except (InvalidName, InvalidReference):
        return None


def _as_host(hostname: str) -> str:
    """The hostname where it can be part of an image's name, else nothing."""
    try:
        Repository.parse("x", f"{hostname}:1")
    except InvalidName:
        return ""
    return hostname


async def _get(engine: IEngineRequests, path: str, what: str) -> object:
    """A JSON document.  Raises `EngineError`."""
    response = await engine.request("GET", path)
    data = await read_whole(engine.body(response, what), _LARGEST_ANSWER)
    try:
        return json.loads(data)
    except ValueError as error:
        raise EngineError(f"the engine's answer is not JSON: {what}") from error
