"""Requests about the engine's images, except for those of a pull, which are in `client`.

Every function raises `EngineError`.  A member of an answer that is missing or of another type is taken as empty.
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
from k3dreg.docker.messages import readable, stream_error
from k3dreg.docker.refusals import is_unpacking_failure
from k3dreg.formats.json_stream import JsonObjects
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.oci.platform import Platform
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.content import IByteStream

log = make_logger()

# Seconds until the head of an answer, which the engine sends to a load only after it has read the whole archive.
_MAX_WAIT = 3600.0
# Attempts to get a list when the engine fails because of an image that is being removed.
_TRIES = 5
_LIST = "the list of images"
_TAR = {"Content-Type": "application/x-tar"}
# An empty tar file is two blocks of zeros.
_EMPTY_TAR = bytes(1024)


@frozen
class ListedImage:
    """An image in the engine's list.  `created` is in seconds since the epoch, `size` in bytes."""

    id: str = ""
    names: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    created: int = 0
    size: int = 0


async def listed(engine: IEngineRequests, *, reference: str = "", label: str = "") -> Sequence[ListedImage]:
    """Return the images, or those whose names match the pattern `reference`, or that have a label.

    `label` is the label's name.  The engine reads every image to compare labels, those without a name, too.

    For short lists: a long one blocks the reactor while it is parsed.  See `parse_list`.
    """
    return parse_list(await fetch_list(engine, reference=reference, label=label))


async def fetch_list(engine: IEngineRequests, *, reference: str = "", label: str = "") -> bytes:
    """Return the unparsed list of images, for `parse_list`.  `reference` and `label`: see `listed`.

    An engine with the containerd store reads the names first and their images then, and fails when an image is removed
    between (seen in 28.5: 404, `content digest sha256:…: not found`).  So this asks again at once: by then the name is
    removed, too.
    """
    filters = {name: [value] for name, value in (("reference", reference), ("label", label)) if value}
    params = {"filters": json.dumps(filters)} if filters else {}
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
    """Return the images in an answer of `fetch_list`.  Call it in a worker thread if the list may be long."""
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
    """Return the names of an image.  It is an error if the engine does not have the image."""
    return _names(mapping(await ask(engine, "GET", f"/images/{_path_of(image)}/json")))


async def import_empty(engine: IEngineRequests, name: str, labels: Mapping[str, str]) -> str:
    """Import an image without files under `name`, a repository with a tag, and return its ID."""
    repository, _, tag = name.partition(":")
    changes = "LABEL " + " ".join(f"{key}={value}" for key, value in labels.items())
    params = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": changes}
    answer = mapping(await ask(engine, "POST", "/images/create", params=params, data=_EMPTY_TAR, headers=_TAR))
    imported = text(answer.get("status"))
    if not imported.startswith("sha256:"):  # an answer of status 200 may contain an error
        raise EngineError(f"the engine did not import an empty image: {readable(stream_error(answer) or '')}"[:200])
    return imported


async def remove(engine: IEngineRequests, image: str, *, force: bool = False) -> None:
    """Remove a name, or with `force` an image by its ID.

    An image that does not exist is no error: Docker 26 lists an image for a moment after its removal.
    """
    try:
        await ask(engine, "DELETE", f"/images/{_path_of(image)}", params={"force": "1"} if force else {})
    except EngineError as error:
        if error.status != 404:
            raise


async def remove_unless_running(engine: IEngineRequests, image: str) -> None:
    """Remove an image by its ID, unless a running container uses it, which is no error."""
    try:
        await remove(engine, image, force=True)
    except EngineError as error:
        if error.status != 409:
            raise


async def build(engine: IEngineRequests, dockerfile: bytes, platform: Platform | None) -> str:
    """Let BuildKit build an image without context and credentials; return its ID, "" if BuildKit does not tell it.

    Without `platform`, BuildKit builds for the engine's own platform.
    """
    response = await engine.request(
        "POST",
        "/build",
        params={"version": "2"} | ({"platform": str(platform)} if platform else {}),
        headers=_TAR,
        data=dockerfile,  # without a BuildKit session, the body may be the Dockerfile itself instead of a tar
        max_wait=_MAX_WAIT,
    )
    built = ""
    async for message in _messages(engine.body(response, "a build")):
        if message.get("id") == "moby.image.id":
            built = text(mapping(message.get("aux")).get("ID")) or built
    return built


async def load(engine: IEngineRequests, archive: IBodyProducer) -> None:
    """Load an archive of `docker save` into the engine.  Raises what reading the archive raises, too.

    It is no error if the engine has stored the content and cannot unpack it, because it is that of an artifact.
    """
    try:
        response = await engine.request(
            "POST", "/images/load", params={"quiet": "1"}, headers=_TAR, data=archive, max_wait=_MAX_WAIT
        )
        async for _ in _messages(engine.body(response, "a load")):
            pass
    except EngineError as error:
        if not is_unpacking_failure(str(error)):
            raise
        log.info("Docker stored the blobs, and could not unpack them: {error}", error=error)


async def _messages(stream: IByteStream) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the objects of a progress stream, and close it in the end.  Raises `EngineError` for an error in it."""
    objects = JsonObjects()
    try:
        while data := await stream.read():
            for message in objects.feed(data):
                error = stream_error(message)
                if error is not None:
                    raise EngineError(readable(error)[:500])
                yield message
    finally:
        stream.close()


def _names(image: Mapping[str, Any]) -> tuple[str, ...]:
    # Engines before API 1.43 give an image without names the name "<none>:<none>".
    return tuple(str(name) for name in items(image.get("RepoTags")) if name != "<none>:<none>")


def _path_of(image: str) -> str:
    return quote(image, safe="/:@")
