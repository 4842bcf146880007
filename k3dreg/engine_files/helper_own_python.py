"""Containers with the Python that k3dreg runs with, for a k3dreg that is in no container itself.

The engine may have no image that has one, and must not get any from a registry.  So an empty container is given the
files that this Python needs to run one small script: its program, the shared libraries, a few modules.  Which those
are, it says itself.  They are some 10 MB, from a Python that has its debugging symbols some 30.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from k3dreg.docker.engine import IEngineRequests
from k3dreg.engine_files import pass_directories
from k3dreg.engine_files.helper_container import Helper
from k3dreg.engine_files.helper_objects import image_of_nothing
from k3dreg.engine_files.local_files import LocalBlob
from k3dreg.engine_files.scratch_files import ScratchFile
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import FilesUnreachable
from k3dreg.streaming.workers import Workers

_IMAGE = "k3dreg-hands-over"
# Where all of it is in the container.
_HOME = "python"
# What is asked of a Python that has loaded no more than the script needs.
_TELL = """
import _socket, os, sys
with open("/proc/self/maps") as maps:
    mapped = sorted({line.split(None, 5)[5].rstrip() for line in maps if "/" in line})
modules = [path for path in (getattr(module, "__file__", None) for module in [*sys.modules.values()]) if path]
told = {
    "program": os.path.realpath("/proc/self/exe"),
    "mapped": mapped,
    "library": os.path.dirname(os.__file__),
    "modules": modules,
    "inside": f"{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}",
}
import json
json.dump(told, sys.stdout)
"""
# The program that loads shared libraries: `ld-linux-x86-64.so.2`, `ld-musl-x86_64.so.1`, `ld64.so.2`, `ld-2.31.so`.
_LOADER = re.compile(r"ld(64)?[-.].*so.*")
_LIBRARY = re.compile(r".+\.so(\..+)?")
# Seconds.  It takes some 20 ms.
_PATIENCE = 10.0


class OwnPythonHelpers:
    """See `Helpers`.  In the network namespace of the engine's machine, as k3dreg's own user, whoever that is."""

    def __init__(self, engine: IEngineRequests, workers: Workers, owner: str, scratch: str) -> None:
        """`owner` as of `ReaderContainers`; temporary files are made in the directory `scratch`."""
        self._engine = engine
        self._workers = workers
        self._owner = owner
        self._scratch = scratch

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Helper]:
        """See `Helpers`."""
        files = ScratchFile(self._scratch)
        try:
            command, blob = await self._workers.run(self._collect, files)
            async with image_of_nothing(self._engine, _IMAGE, "handing-over", self._owner) as image:
                yield Helper(
                    command,
                    {"Image": image, "User": f"{os.geteuid()}:{os.getegid()}", "Env": [f"PYTHONHOME=/{_HOME}"]},
                    # No label of SELinux's: what a container gives away, this process could not use.
                    {"NetworkMode": "host", "UsernsMode": "host", "SecurityOpt": ["label=disable"]},
                    blob,
                )
        finally:
            self._workers.clean_up(files.close)

    def _collect(self, files: ScratchFile) -> tuple[list[str], LocalBlob]:
        """Write the tar of its files into `files`; return how it is called, and the tar.  For worker threads.

        Raises `FilesUnreachable`, and `StoreError` where there can be no temporary file.
        """
        try:
            told = _told()
            with files.use() as descriptor, os.fdopen(descriptor, "w+b", closefd=False) as file:
                script = Path(pass_directories.__file__).read_text()
                command = [*_write(told, file), "-S", "-s", "-B", "-c", script]
                file.seek(0)
                digest = Digest.parse(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
                return command, LocalBlob(self._workers, files.again, digest, file.tell())
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            raise FilesUnreachable(f"this Python cannot be run in a container: {type(error).__name__}") from error


def _told() -> Any:
    """What Python tells of itself: see `_TELL`."""
    command = [sys.executable, "-I", "-S", "-B", "-c", _TELL]
    done = subprocess.run(  # noqa: S603  (no words but our own)
        command, capture_output=True, check=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL
    )
    return json.loads(done.stdout)


def _write(told: Any, to: IO[bytes]) -> list[str]:
    """The tar; returns how the program in it is called.  Raises `OSError`."""
    libraries = [path for path in told["mapped"] if _LIBRARY.fullmatch(posixpath.basename(path))]
    with tarfile.open(fileobj=to, mode="w") as tar:
        _add(tar, told["program"], f"{_HOME}/program", executable=True)
        for path in libraries:
            name = posixpath.basename(path)
            _add(tar, path, f"{_HOME}/libraries/{name}", executable=True)
            for other in _other_names(path):
                link = tarfile.TarInfo(f"{_HOME}/libraries/{other}")
                link.type, link.linkname = tarfile.SYMTYPE, name
                tar.addfile(link)
        for inside, path in _modules(told["modules"], told["library"]):
            _add(tar, path, f"{_HOME}/{told['inside']}/{inside}")
    loader = [name for name in map(posixpath.basename, libraries) if _LOADER.fullmatch(name)]
    # Called by its name, it is needed where programs expect it.
    load = [f"/{_HOME}/libraries/{loader[0]}", "--library-path", f"/{_HOME}/libraries"] if loader else []
    return [*load, f"/{_HOME}/program"]


def _modules(paths: Iterable[str], library: str) -> Iterator[tuple[str, str]]:
    """The files of the library's modules: where each is in the library, and where it is."""
    for path in sorted(set(paths)):
        if path.startswith(f"{library}/"):
            yield path[len(library) + 1 :], path


def _other_names(path: str) -> Iterator[str]:
    """Symbolic links beside a library, by one of which programs know it: `libz.so.1` is `libz.so.1.3.1`."""
    directory, name = posixpath.split(path)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink() and os.readlink(entry.path) == name:
                yield entry.name


def _add(tar: tarfile.TarFile, path: str, name: str, *, executable: bool = False) -> None:
    with open(path, "rb") as file:
        info = tarfile.TarInfo(name)
        info.size, info.mode = os.fstat(file.fileno()).st_size, 0o755 if executable else 0o644
        tar.addfile(info, file)
