"""The two ways to give an engine with a containerd store the blobs that it lost.

Both were tried on Docker 28.5; 26.1 has only the second: it tries to fetch the first one's context by a name that
does not resolve.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from k3dreg.docker import images
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Repository
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.body_producer import Pieces
from k3dreg.streaming.content import IBlob

log = make_logger()

# Bytes of a block of a tar.
_BLOCK = 512
# Images that are named for the time of a load.
_SCRATCH_NAME = "docker.io/library/k3dreg-repair"


async def rebuild(engine: IEngineRequests, repository: Repository, root: Digest, platform: Platform | None) -> None:
    """Let BuildKit build `FROM` the image, for which it fetches what is missing: without credentials.

    The digest names what is in the engine, wherever the tag has moved; without `platform` BuildKit would take the
    engine's own.  The image that is built is removed.  Raises `EngineError` with BuildKit's words.
    """
    built = await images.build(engine, f"FROM {repository}@{root}\n".encode("ascii"), platform)
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
        await images.load(engine, Pieces(pieces))
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


async def _remove_unnamed(engine: IEngineRequests, image: str) -> None:
    """Remove an image that has no name: a build may give an image that the user built before."""
    try:
        if not await images.names(engine, image):
            await images.remove(engine, image)
    except EngineError as error:
        log.warn("the image {image}, left over from a repair, was not removed: {error}", image=image, error=error)


async def _untag(engine: IEngineRequests, name: str) -> None:
    try:
        await images.remove(engine, name)
    except EngineError as error:
        log.warn("the tag {name}, left over from a repair, was not removed: {error}", name=name, error=error)
