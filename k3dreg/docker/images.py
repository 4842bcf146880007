"""Images in the engine, apart from what `client` does with the image that a node asks for.

Every function raises `EngineError`.  What the engine does not tell, or tells in another shape, is empty.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from attrs import frozen
from twisted.web.iweb import IBodyProducer

from k3dreg.docker.documents import ask, fetch, parse
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.members import items, mapping, number, text, texts
from k3dreg.docker.messages import one_line, stream_error
from k3dreg.docker.refusals import is_unpacking_failure
from k3dreg.formats.json_stream import JsonObjects
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.oci.platform import Platform
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.content import IByteStream

log = make_logger()

# Seconds until the head of an answer: a load is only answered once its body has been read.
_PATIENCE = 3600.0
# How often a list is asked for that the engine fails to make.
_TRIES = 5
_LIST = "the list of images"
_TAR = {"Content-Type": "application/x-tar"}
# An empty tar file is two blocks of zeros.
_EMPTY_TAR = bytes(1024)


@frozen
class ListedImage:
    """An image in the engine's list.  `created` in seconds since the epoch, `size` in bytes."""

    id: str = ""
    names: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    created: int = 0
    size: int = 0


async def listed(engine: IEngineRequests, *, reference: str = "") -> Sequence[ListedImage]:
    """Return the images, or those whose name matches the pattern `reference`.  For lists that are short."""
    return parse_list(await fetch_list(engine, reference=reference))


async def fetch_list(engine: IEngineRequests, *, reference: str = "") -> bytes:
    """Ask for the list of images, as `listed` does, and return it for `parse_list`.

    An engine with the containerd store reads the names first and then what they mean, and fails when an image has been
    removed between (seen in 28.5: 404, `content digest sha256:…: not found`).  So it is asked again, at once: the name
    is gone by then.
    """
    params = {"filters": json.dumps({"reference": [reference]})} if reference else {}
    tries = _TRIES
    while True:
        tries -= 1
        try:
            return await fetch(engine, "GET", "/images/json", _LIST, params=params)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if not tries or "not found" not in str(error).lower():
                raise


def parse_list(answer: bytes) -> Sequence[ListedImage]:
    """Return the images in an answer of `fetch_list`.  A long list takes a while."""
    return [
        ListedImage(
            text(image.get("Id")),
            _names(image),
            texts(image.get("Labels")),
            number(image.get("Created")),
            number(image.get("Size")),
        )
        for image in items(parse(answer, _LIST))
        if isinstance(image, dict)
    ]


async def names(engine: IEngineRequests, image: str) -> Sequence[str]:
    """Return the names of an image that is there."""
    return _names(mapping(await ask(engine, "GET", f"/images/{_path_of(image)}/json")))


async def import_empty(engine: IEngineRequests, name: str, labels: Mapping[str, str]) -> str:
    """Import an image without files, and return its ID."""
    repository, _, tag = name.partition(":")
    changes = "LABEL " + " ".join(f"{key}={value}" for key, value in labels.items())
    params = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": changes}
    answer = mapping(await ask(engine, "POST", "/images/create", params=params, data=_EMPTY_TAR, headers=_TAR))
    imported = text(answer.get("status"))
    if not imported.startswith("sha256:"):  # errors come inside a 200, too
        raise EngineError(f"the engine did not import an empty image: {one_line(stream_error(answer) or '')}"[:200])
    return imported


async def remove(engine: IEngineRequests, image: str, *, force: bool = False) -> None:
    """Remove a name, or with `force` an image by its ID.

    One that is gone is no error: Docker 26 lists an image for a moment after its removal.
    """
    try:
        await ask(engine, "DELETE", f"/images/{_path_of(image)}", params={"force": "1"} if force else {})
    except EngineError as error:
        if error.status != 404:
            raise


async def remove_unless_running(engine: IEngineRequests, image: str) -> None:
    """Remove an image by its ID.  One of which a container runs stays, which is no error."""
    try:
        await remove(engine, image, force=True)
    except EngineError as error:
        if error.status != 409:
            raise


async def build(engine: IEngineRequests, dockerfile: bytes, platform: Platform | None) -> str:
    """Let BuildKit build an image, without a context and without credentials; return its ID, "" if it is not told.

    Without `platform` BuildKit takes the engine's own.
    """
    response = await engine.request(
        "POST",
        "/build",
        params={"version": "2"} | ({"platform": str(platform)} if platform else {}),
        headers=_TAR,
        data=dockerfile,  # without a session the body may be the Dockerfile itself
        patience=_PATIENCE,
    )
    built = ""
    async for message in _messages(engine.body(response, "a build")):
        if message.get("id") == "moby.image.id":
            built = text(mapping(message.get("aux")).get("ID")) or built
    return built


async def load(engine: IEngineRequests, archive: IBodyProducer) -> None:
    """Give the engine an archive of `docker save`.  Raises what reading the archive raises, too.

    An engine that has taken the archive's content and cannot unpack it, as that of an artifact, counts as success.
    """
    try:
        response = await engine.request(
            "POST", "/images/load", params={"quiet": "1"}, headers=_TAR, data=archive, patience=_PATIENCE
        )
        async for _ in _messages(engine.body(response, "a load")):
            pass
    except EngineError as error:
        if not is_unpacking_failure(str(error)):
            raise
        log.info("Docker took the blobs and says: {error}", error=error)


async def _messages(stream: IByteStream) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the objects of a progress stream."""
    objects = JsonObjects()
    try:
        while data := await stream.read():
            for message in objects.feed(data):
                error = stream_error(message)
                if error is not None:
                    raise EngineError(one_line(error)[:500])
                yield message
    finally:
        stream.close()


def _names(image: Mapping[str, Any]) -> tuple[str, ...]:
    # "<none>:<none>" is how engines before API 1.43 spell that there are no names.
    return tuple(str(name) for name in items(image.get("RepoTags")) if name != "<none>:<none>")


def _path_of(image: str) -> str:
    return quote(image, safe="/:@")
