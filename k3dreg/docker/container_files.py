"""Read and write files of a container by the archive API.  The container need not run."""

from __future__ import annotations

import base64
import binascii
import io
import json
import tarfile

from attrs import frozen
from twisted.web.iweb import IResponse

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError, EngineUnavailable, FileAbsent
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.response_body import read_whole

# Go's fs.FileMode: the bit of a directory, and the bits of every file that is not a regular file.
_DIRECTORY = 1 << 31
_NOT_PLAIN = _DIRECTORY | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19


# Bytes of an archive with one small file: its header, the file in whole blocks, and up to 20 blocks at the end.
_OVERHEAD = 12 * 1024


@frozen
class SmallFile:
    """A regular file: its content, permissions and owner."""

    data: bytes
    mode: int = 0o644
    user: int = 0
    group: int = 0


@frozen
class PathStat:
    """The kind of a file, and its size in bytes."""

    size: int
    is_file: bool
    is_directory: bool


async def stat(engine: IEngineRequests, container: str, path: str) -> PathStat:
    """Return the kind and size of a file.  Raises `FileAbsent` if file or container is missing, and `EngineError`."""
    response = await _request(engine, "HEAD", container, path)
    await read_whole(engine.body(response, "an answer"), 1024)
    return _stat_of(response)


async def open_archive(engine: IEngineRequests, container: str, path: str, what: str) -> IByteStream:
    """Return the tar archive of a file or directory, which the caller must read to its end or close.

    `what` names it in errors: see `IEngineRequests.body`.  Raises as `stat` does.
    """
    return engine.body(await _request(engine, "GET", container, path), what)


async def read_file(engine: IEngineRequests, container: str, path: str, largest: int) -> SmallFile | None:
    """Return a file of at most `largest` bytes; None if it is missing.

    Raises `EngineError`, also for a larger file, and for anything that is no regular file.
    """
    try:
        response = await _request(engine, "GET", container, path)
    except FileAbsent:
        return None
    data = await read_whole(engine.body(response, "a file of a container"), largest + _OVERHEAD)
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            member = archive.next()
            file = archive.extractfile(member) if member is not None and member.isreg() else None
            if member is None or file is None:
                raise EngineError(f"{path} is no regular file")
            # Docker 20.10 also has the bits of the file's kind here.
            return SmallFile(file.read(), member.mode & 0o7777, member.uid, member.gid)
    except (tarfile.TarError, EOFError) as error:
        raise EngineError(f"the engine's archive of {path} does not parse") from error


async def write_file(engine: IEngineRequests, container: str, directory: str, name: str, file: SmallFile) -> None:
    """Write a file into a directory that is there, in the place of one of this name.

    The engine removes the old file first.  Podman makes root the owner, and creates a missing directory.

    Raises `FileAbsent` if the directory is missing, and `EngineError`.
    """
    out, member = io.BytesIO(), tarfile.TarInfo(name)
    member.size, member.mode, member.uid, member.gid = len(file.data), file.mode, file.user, file.group
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(member, io.BytesIO(file.data))
    params, headers = {"path": directory, "noOverwriteDirNonDir": "1"}, {"Content-Type": "application/x-tar"}
    try:
        response = await engine.request(
            "PUT", f"/containers/{container}/archive", params=params, headers=headers, data=out.getvalue()
        )
    except EngineError as error:
        if error.status != 404:
            raise
        raise FileAbsent(f"the container has no directory {directory}") from error
    await read_whole(engine.body(response, "an answer"), 1024)


async def _request(engine: IEngineRequests, method: str, container: str, path: str) -> IResponse:
    try:
        return await engine.request(method, f"/containers/{container}/archive", params={"path": path})
    except EngineUnavailable:
        raise
    except EngineError as error:
        # A HEAD's answer has no body, so it does not tell whether the file or the container is missing.
        if error.status != 404:
            raise
        raise FileAbsent("the engine's host has no such file") from error


def _stat_of(response: IResponse) -> PathStat:
    """Parse the header of a HEAD's answer (Engine API, "Get information about files in a container")."""
    try:
        header = response.headers.getRawHeaders("X-Docker-Container-Path-Stat", [""])[0]
        told = json.loads(base64.b64decode(header))
        size, mode = int(told["size"]), int(told["mode"])
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise EngineError("the engine does not say what kind of file there is") from error
    return PathStat(size, not mode & _NOT_PLAIN, bool(mode & _DIRECTORY))
