"""The two ways to give an engine with a containerd store the blobs that it lost.

Both were tried on Docker 28.5; 26.1 has only the second: it tries to fetch the first one's context by a name that
does not resolve.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from k3dreg.docker.engine import IEngineRequests
from k3dreg.formats.json_stream import JsonObjects
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, K3dregError
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Repository
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.body_producer import Pieces
from k3dreg.streaming.content import IBlob, IByteStream

log = make_logger()

# Seconds until the head of an answer: a load is only answered once its body has been read.
_PATIENCE = 3600.0
# Bytes of a block of a tar.
_BLOCK = 512
# How Docker 26 begins to say that it has the content of an artifact and can make no file system of it.
_NOT_UNPACKED = "failed to unpack loaded image"
# Images that are named for the time of a load.
_SCRATCH_NAME = "docker.io/library/k3dreg-repair"


async def rebuild(engine: IEngineRequests, repository: Repository, root: Digest, platform: Platform | None) -> None:
    """Let BuildKit build `FROM` the image, for which it fetches what is missing: without credentials.

    The digest names what is in the engine, wherever the tag has moved; without `platform` BuildKit would take the
    engine's own.  No session: the body is the Dockerfile itself.  The image that is built is removed.
    Raises `EngineError` with BuildKit's words.
    """
    response = await engine.request(
        "POST",
        "/build",
        params={"version": "2"} | ({"platform": str(platform)} if platform else {}),
        headers={"Content-Type": "application/x-tar"},
        data=f"FROM {repository}@{root}\n".encode("ascii"),
        patience=_PATIENCE,
    )
    built = ""
    stream = engine.body(response, "a build")
    async for message in _messages(stream):
        aux = message.get("aux")
        if message.get("id") == "moby.image.id" and isinstance(aux, dict):
            built = str(aux.get("ID", ""))
    if built and built != str(root):
        await _remove_unnamed(engine, built)


async def load(engine: IEngineRequests, root: Descriptor, blobs: Sequence[IBlob]) -> None:
    """Hand `blobs` to the engine by an archive that holds nothing else: it takes the rest from its own store.

    The image is loaded under a name that is removed afterwards, so that its own tags are not touched: one of them
    may be moved at this very moment.  Raises `EngineError`, and what reading the blobs raises.
    """
    name = f"{_SCRATCH_NAME}:{secrets.token_hex(8)}"
    index = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [
            {**root.to_json(), "annotations": {"io.containerd.image.name": name}},
        ],
    }
    pieces: list[bytes | IBlob] = []
    for member, content in (
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ("index.json", json.dumps(index).encode("ascii")),
    ):
        pieces.append(_header(member, len(content)) + content + _padding(len(content)))
    for blob in blobs:
        member = f"blobs/{blob.digest.algorithm}/{blob.digest.hex}"
        pieces += [_header(member, blob.size), blob, _padding(blob.size)]
    pieces.append(bytes(2 * _BLOCK))
    try:
        response = await engine.request(
            "POST",
            "/images/load",
            params={"quiet": "1"},
            headers={"Content-Type": "application/x-tar"},
            data=Pieces(pieces),
            patience=_PATIENCE,
        )
        async for _ in _messages(engine.body(response, "a load")):
            pass
    except EngineError as error:
        if not str(error).startswith(_NOT_UNPACKED):
            raise
        log.info("Docker took the blobs and says: {error}", error=error)
    finally:
        await _untag(engine, name)


def _header(name: str, size: int) -> bytes:
    # Only here: it brings bz2 and lzma along, and most daemons never mend anything.
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)  # the format for sizes of 8 GiB and more


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


async def _messages(stream: IByteStream) -> AsyncIterator[Mapping[str, Any]]:
    """The objects of a progress stream.  Raises `EngineError` for one that is an error."""
    objects = JsonObjects()
    try:
        while data := await stream.read():
            for message in objects.feed(data):
                detail = message.get("errorDetail")
                if detail is not None or "error" in message:
                    said = detail.get("message") if isinstance(detail, dict) else message.get("error")
                    raise EngineError(str(said)[:500])
                yield message
    finally:
        stream.close()


async def _remove_unnamed(engine: IEngineRequests, image: str) -> None:
    """Remove the image, unless somebody gave it a name: what a build makes may be what another had made before."""
    path = f"/images/{quote(image, safe=':')}"
    try:
        response = await engine.request("GET", f"{path}/json")
        text = b""
        stream = engine.body(response, "an answer")
        while data := await stream.read():
            text += data
        if not json.loads(text).get("RepoTags"):
            await _delete(engine, path)
    except (K3dregError, ValueError, AttributeError) as error:
        log.warn("the image {image}, left over from a repair, was not removed: {error}", image=image, error=error)


async def _untag(engine: IEngineRequests, name: str) -> None:
    try:
        await _delete(engine, f"/images/{quote(name, safe=':/')}")
    except EngineError as error:
        if error.status != 404:
            log.warn("the tag {name}, left over from a repair, was not removed: {error}", name=name, error=error)


async def _delete(engine: IEngineRequests, path: str) -> None:
    response = await engine.request("DELETE", path)
    engine.body(response, "an answer").close()
