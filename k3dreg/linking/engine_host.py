"""Reach the files of an engine that runs on this machine, and its containers' files, by the engine's own paths."""

from __future__ import annotations

import ctypes
import os
import posixpath
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from attrs import frozen

from k3dreg.clusters.nodes import NodeMount
from k3dreg.linking.link_tree import OPEN_DIRECTORY
from k3dreg.linking.linking_errors import CannotLink

# open_tree(2).  The number is that of every architecture but alpha.
_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100
_BASE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Seconds for a connection to the engine's socket, which needs no answer.
_MAX_WAIT = 5.0


@frozen
class EngineHost:
    """The root directory and the mounts that an engine sees.

    `root` is put before the engine's paths.  `is_ours` is whether its mounts are those of this process, so that its
    paths may be resolved here.
    """

    root: str = ""
    is_ours: bool = True

    def path(self, path: str) -> str:
        """Return the path by which this process reaches a path of the engine's."""
        return f"{self.root}{path}"

    @contextmanager
    def pair(self, source: str, target: str, below: str) -> Iterator[tuple[int, int]]:
        """Open the directories `source` and `target`, paths of the engine's, through one mount.

        `target` is `below` or lies below it, and no symbolic link is followed from there on, since what lies there
        belongs to a container.

        link(2) fails for two mounts of the same file system, as when Docker's root is a mount of its own.  So the
        lowest directory above both is mounted once more, at no place in the file system, and closing it unmounts it.

        Raises `CannotLink` and `OSError`.  Blocks.
        """
        source, below, rest = self._resolve(source), self._resolve(below), target[len(below) :].lstrip("/")
        with ExitStack() as stack:
            above = os.path.commonpath((source, below)) if self.is_ours else "/"
            base = _detached(above) if self.is_ours else None
            if base is None:
                base, above = os.open(self.path("/") if not self.is_ours else "/", _BASE), "/"
            stack.callback(os.close, base)
            opened = []
            for path in (source, f"{below}/{rest}"):
                descriptor = open_below(base, os.path.relpath(path, above))
                stack.callback(os.close, descriptor)
                opened.append(descriptor)
            # Below the common directory may be a mount of another file system, which the new mount does not have.
            if not same_directory(opened[0], self._reached(source)):
                raise CannotLink("Docker's layers are on a mount of their own")
            yield opened[0], opened[1]

    def _reached(self, resolved: str) -> str:
        return resolved if self.is_ours else self.path(resolved)

    def _resolve(self, path: str) -> str:
        """Return the path without symbolic links; relative to `root` if the mounts are not ours."""
        return os.path.realpath(self.path(path)) if self.is_ours else path


def find_engine_host(address: str) -> EngineHost:
    """Return the host of the engine that listens on the UNIX socket `address`.

    The kernel tells which process listens: the engine, or a service manager that opened the socket for it.  Raises
    `CannotLink` if there is none on this machine.  Blocks.
    """
    if not address:
        raise CannotLink("Docker is not on this machine: its address is no UNIX socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_MAX_WAIT)
        try:
            connection.connect(address)
            told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError as error:
            raise CannotLink(f"Docker's socket cannot be used: {error.strerror}") from error
    pid = int(struct.unpack("3i", told)[0])
    if not pid:
        raise CannotLink("Docker runs where k3dreg cannot see its processes")
    try:
        is_ours = _mounts("self") == _mounts(str(pid))
        if not is_ours:
            return EngineHost(f"/proc/{pid}/root", is_ours=False)
        root = os.readlink(f"/proc/{pid}/root")
    except OSError as error:
        raise CannotLink(f"k3dreg may not look at Docker's process: {error.strerror}") from error
    return EngineHost("" if root == "/" else root)


def _mounts(process: str) -> tuple[int, int]:
    found = os.stat(f"/proc/{process}/ns/mnt")
    return found.st_dev, found.st_ino


def open_below(base: int, path: str) -> int:
    """Open the directory at `path` below the open directory `base`, and follow no symbolic link.

    Raises `CannotLink` for a path that leads upwards, and `OSError`.
    """
    current = os.dup(base)
    try:
        for name in path.split("/"):
            if name in ("", "."):
                continue
            if name == "..":
                raise CannotLink("a directory is not where it should be")
            current, above = os.open(name, OPEN_DIRECTORY, dir_fd=current), current
            os.close(above)
        return os.open(".", OPEN_DIRECTORY, dir_fd=current)
    finally:
        os.close(current)


def same_directory(descriptor: int, path: str) -> bool:
    """Return whether an open directory is the one at `path`."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _detached(path: str) -> int | None:
    """Return a descriptor of a new mount of the directory at `path`; None where the kernel makes none.

    The mount has no mounts below it, and ends when it is closed.  It needs CAP_SYS_ADMIN and Linux 5.2.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    descriptor: int = call(
        ctypes.c_long(_OPEN_TREE), ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint(flags)
    )
    return descriptor if descriptor >= 0 else None


def on_host(path: str, mounts: Iterable[NodeMount]) -> tuple[str, str]:
    """Return a node's path as a path on the engine's host, and the source of the mount in which it lies.

    Raises `CannotLink` if it lies in none: then it is in the container's own file system.
    """
    if not path.startswith("/") or posixpath.normpath(path) != path:
        raise CannotLink("the node's containerd names a directory that is no absolute path")
    within = [each for each in mounts if each.destination and f"{path}/".startswith(f"{each.destination.rstrip('/')}/")]
    if not within:
        raise CannotLink("the node's snapshots are in no volume")
    found = max(within, key=lambda each: len(each.destination.rstrip("/")))
    return found.source.rstrip("/") + path[len(found.destination.rstrip("/")) :], found.source
