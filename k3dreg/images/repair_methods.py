"""Two ways to give an engine with a containerd store the blobs that it lost: `rebuild` and `load`.

Both work with Docker 28.5.  With 26.1 only `load` works: for `rebuild`, it tries to fetch the build context by a host
name that does not resolve.
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

# Bytes of a tar block.
_BLOCK = 512
# The repository of the temporary name under which blobs are loaded.
_SCRATCH_NAME = "docker.io/library/k3dreg-repair"


async def rebuild(engine: IEngineRequests, repository: Repository, root: Digest, platform: Platform | None) -> None:
    """Let BuildKit build `FROM` the image, for which it fetches the missing blobs, without credentials.

    The image is named by its digest, because its tag may have moved in the registry.  Without `platform` BuildKit
    builds for the engine's own platform.  The built image is removed.  Raises `EngineError` with BuildKit's message.
    """
    built = await images.build(engine, f"FROM {repository}@{root}\n".encode("ascii"), platform)
    if built and built != str(root):
        await _remove_unnamed(engine, built)


async def load(engine: IEngineRequests, root: Descriptor, blobs: Sequence[IBlob]) -> None:
    """Load `blobs` into the engine by an archive that contains only them: the engine has the image's other blobs.

    The image is loaded under a temporary name, so that its own tags do not change: the user may be moving one at this
    moment.  Raises `EngineError`, and what sending the blobs raises.
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
    # Imported here because it imports bz2 and lzma, and most daemons never repair an image.
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)  # the format for sizes of 8 GiB and more


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


async def _remove_unnamed(engine: IEngineRequests, image: str) -> None:
    """Remove a built image unless it has a name: a build may result in an image that the user has built before."""
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
