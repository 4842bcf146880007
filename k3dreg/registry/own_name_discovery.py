"""Finds this registry's own names, from its ports and from the engine."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker import containers, images
from k3dreg.docker.image import ImageStore, is_helper_image
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError, EngineUnavailable, InvalidName, InvalidReference
from k3dreg.oci.reference import Repository, Tag, split_name
from k3dreg.registry.own_names import OwnNames, names_of_container, names_of_machine, short_name
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.workers import Workers

log = make_logger()

# Seconds until an engine that could not be reached is asked again: it may be starting together with this daemon.
_AGAIN = 2.0
# Seconds at most until an engine that refused is asked again.  Each refusal doubles the time.
_LONGEST = 300.0


async def learn_names(
    names: OwnNames, engine: IEngineRequests, hostname: str, ports: Sequence[int], clock: IReactorTime
) -> None:
    """Add the names of this registry, which listens on `ports`, to `names`.

    In a container, the names on the machine have the *published* port, so the container is looked up in the engine by
    `hostname`.  Elsewhere they have the port itself.  An engine that cannot be reached is asked again every
    `_AGAIN` seconds, and one that refuses less and less often.  Until it answers, the names are those of a registry
    outside a container: pushes and pulls of pushed content work without an engine.  Cancelling stops the search.
    """
    pause, refusal = _AGAIN, ""
    while True:
        try:
            container = await containers.inspect(engine, hostname)
        except EngineError as error:
            _tell(names.learn(names_of_machine(ports, as_host(hostname))))
            if isinstance(error, EngineUnavailable):  # `EngineWatch` logs it
                pause = _AGAIN
            elif str(error) != refusal:
                refusal = str(error)
                log.warn(
                    "Docker does not say whether k3dreg runs in one of its containers, so its own names may be "
                    "incomplete (--alias adds some): {refusal}",
                    refusal=refusal,
                )
            await deferLater(clock, pause)
            pause = min(2 * pause, _LONGEST)
            continue
        found = names_of_container(container, hostname, ports) if container is not None else ()
        _tell(names.learn(found or names_of_machine(ports, as_host(hostname))))
        return


def _tell(new: Sequence[str]) -> None:
    if new:
        log.info("this registry is also {names}", names=", ".join(new))


class EngineImageNames:
    """Lists the names of the engine's images.

    A worker thread parses the list: ten thousand images take a quarter of a second.
    """

    def __init__(self, engine: IEngineRequests, workers: Workers) -> None:
        self._engine = engine
        self._workers = workers

    async def names(self) -> Sequence[tuple[Repository, Tag]]:
        """Return the names as Docker writes them, without those of k3dreg's own helper images.

        Names that do not parse are left out, as no client can request them.  Raises `EngineError`.
        """
        answer = await images.fetch_list(self._engine)
        found = await self._workers.run(_names_in, answer)
        if (await self._engine.info()).store is ImageStore.PODMAN:
            return [(short_name(repository), tag) for repository, tag in found]
        return found


def _names_in(answer: bytes) -> Sequence[tuple[Repository, Tag]]:
    """Return the names in the engine's list of images.  Raises `EngineError` if `answer` is no such list."""
    texts = [text for image in images.parse_list(answer) for text in image.names]
    return [name for text in texts if not is_helper_image(text) and (name := _name(text)) is not None]


def _name(text: object) -> tuple[Repository, Tag] | None:
    """Parse a name such as `localhost:5005/app:t`, `team/app:t` or `app:t`; None for others, as `<none>:<none>`."""
    name, tag, _ = split_name(str(text))
    try:
        return Repository.of_name(name), Tag.parse(tag or "")
    except (InvalidName, InvalidReference):
        return None


def as_host(hostname: str) -> str:
    """Return the hostname if it can be part of an image's name, else ""."""
    try:
        Repository.parse("x", f"{hostname}:1")
    except InvalidName:
        return ""
    return hostname
