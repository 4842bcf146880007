"""Make a directory tree of hard links to another one, as `cp -al` does, with every attribute of its directories.

The files are those of Docker's images.  They are never opened for writing, because each link is the same file.  A few
files are copied instead: those that programs in pods ignore when they have several links, and those that cannot have
one more link.

Every name is used relative to an open directory and without following symbolic links.  So neither a hostile image nor
a program that changes the target meanwhile leads out of the two trees.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from attrs import define

from k3dreg.linking.linking_errors import CannotLink

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The node's own policy gives its files their labels.
_NOT_COPIED = "security.selinux"
# Set on the target and removed again.
_PROBE = "trusted.k3dreg"
# Directories below each other.  Two descriptors are open for each.  The deepest Debian package has some 20.
_DEEPEST = 200
# Bytes that one call of `sendfile` copies.
_STEP = 1 << 26
# Why a file has no further link: the file system's limit (ext4: 65,000), or a file that cannot be changed (chattr +i).
_NO_LINK = (errno.EMLINK, errno.EPERM)


@define
class LinkedFiles:
    """What was made: the numbers of links and of copied files."""

    files: int = 0
    copied: int = 0


def link_tree(source: int, target: int, proceed: Callable[[], None] = lambda: None) -> LinkedFiles:
    """Fill `target` with hard links to the files below `source`, both open directories, and return what was made.

    `target` must be empty, and gets the attributes of `source`.  `proceed` is called for each directory, and stops the
    work by raising.  Whatever is raised, the target is incomplete and must be removed.

    Raises `CannotLink` before it changes anything if no link can be made from one directory to the other, or if this
    process cannot see all extended attributes; later for a directory that is too deep, and `OSError`.  Blocks.
    """
    _check(source, target)
    linked = LinkedFiles()
    _link(source, target, "", linked, proceed)
    return linked


def _mount_of(directory: int) -> str:
    """Return the ID of the mount through which an open file was reached; "" where the kernel does not tell."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{directory}") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return line.split()[1]
    return ""


def _check(source: int, target: int) -> None:
    if os.fstat(source).st_dev != os.fstat(target).st_dev:
        raise CannotLink("Docker's layers and the node's snapshots are on different file systems")
    if _mount_of(source) != _mount_of(target):
        raise CannotLink("Docker's layers and the node's snapshots are reached through different mounts")
    with os.scandir(target) as entries:
        if next(entries, None) is not None:
            raise CannotLink("the node's new snapshot is not empty")
    # Without CAP_SYS_ADMIN, `listxattr` leaves out `trusted.` attributes and reports no error.  With them the marks of
    # opaque directories would be lost, and deleted files would come back.
    try:
        os.setxattr(target, _PROBE, b"1")
        seen = _PROBE in os.listxattr(target)
        os.removexattr(target, _PROBE)
    except OSError as error:
        raise CannotLink(f"k3dreg may not set extended attributes: {os.strerror(error.errno or 0)}") from error
    if not seen:
        raise CannotLink("k3dreg may not read extended attributes of overlayfs (CAP_SYS_ADMIN)")


def _link(
    source: int, target: int, path: str, linked: LinkedFiles, proceed: Callable[[], None], depth: int = 0
) -> None:
    """Fill the directory `target`, which is at `path` in the layer, from `source`."""
    proceed()
    if depth > _DEEPEST:
        raise CannotLink(f"a layer has more than {_DEEPEST} directories below each other")
    with os.scandir(source) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    copies = _counts_links(path)
    for name, is_directory in found:
        if is_directory:
            os.mkdir(name, 0o700, dir_fd=target)
            with _opened(name, source) as inner_source, _opened(name, target) as inner_target:
                _link(inner_source, inner_target, f"{path}/{name}", linked, proceed, depth + 1)
        elif (copies or _counts_links(f"{path}/{name}")) and _is_regular(name, source):
            _copy(name, source, target)
            linked.copied += 1
        else:
            try:
                os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
                linked.files += 1
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _copy(name, source, target)
                linked.copied += 1
    _copy_attributes(source, target)


def _counts_links(path: str) -> bool:
    """Return whether programs look at the number of links of files below `path`.

    Debian's cron and cronie ignore a crontab that has more than one link (cron(8)).
    """
    parts = path.split("/")[1:]
    if parts[:1] == ["etc"]:
        return len(parts) > 1 and parts[1].startswith("cron")
    return parts[:2] == ["var", "spool"] and len(parts) > 2 and parts[2] in ("cron", "at")


@contextlib.contextmanager
def _opened(name: str, directory: int) -> Iterator[int]:
    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_regular(name: str, directory: int) -> bool:
    return stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _copy(name: str, source: int, target: int) -> None:
    """Copy a file of any kind but a directory, with its attributes."""
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISREG(found.st_mode):
        _copy_regular(name, source, target)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    here, there = f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}"
    for attribute in os.listxattr(here, follow_symlinks=False):
        if attribute != _NOT_COPIED:
            value = os.getxattr(here, attribute, follow_symlinks=False)
            os.setxattr(there, attribute, value, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(there, stat.S_IMODE(found.st_mode))
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_regular(name: str, source: int, target: int) -> None:
    original = os.open(name, _OPEN_FILE, dir_fd=source)
    try:
        copy = os.open(name, _CREATE_FILE, 0o600, dir_fd=target)
        try:
            while os.sendfile(copy, original, None, _STEP):
                pass
            _copy_attributes(original, copy)
        finally:
            os.close(copy)
    finally:
        os.close(original)


def _copy_attributes(source: int, target: int) -> None:
    """Give an open file the owner, extended attributes, mode and times of another one.

    In this order: a new owner removes the bits setuid and setgid, and file capabilities, and every change sets the
    times.
    """
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    names = {name for name in os.listxattr(source) if name != _NOT_COPIED}
    # A directory may have inherited access lists from the one in which it was made.
    for name in os.listxattr(target):
        if name not in names and name != _NOT_COPIED:
            os.removexattr(target, name)
    for name in names:
        os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
