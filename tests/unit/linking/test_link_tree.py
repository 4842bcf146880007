"""Trees of hard links, made of real files.  Nearly all of it needs root, and is skipped without."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k3dreg.linking import link_tree as module
from k3dreg.linking.link_tree import LinkedFiles, link_tree
from k3dreg.linking.linking_errors import CannotLink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
# cap_net_raw=ep (linux/capability.h: VFS_CAP_REVISION_2 with the effective bit, then permitted and inheritable).
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
LONG_AGO = 981_173_106_123_456_789  # nanoseconds


class Trees:
    """Two directories, `source` and the empty `target`."""

    def __init__(self, directory: Path) -> None:
        self.source, self.target = directory / "source", directory / "target"
        self.source.mkdir()
        self.target.mkdir()

    def file(self, path: str, content: bytes = b"x") -> Path:
        file = self.source / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def link(self, proceed: Callable[[], None] = lambda: None) -> LinkedFiles:
        source, target = (os.open(each, module.OPEN_DIRECTORY) for each in (self.source, self.target))
        try:
            return link_tree(source, target, proceed)
        finally:
            os.close(source)
            os.close(target)

    def is_linked(self, path: str) -> bool:
        return (self.source / path).lstat().st_ino == (self.target / path).lstat().st_ino


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    # Not on a tmpfs, which has no `trusted.` attributes before Linux 6.6.
    return Trees(tmp_path)


def listing(root: Path) -> Iterator[tuple[object, ...]]:
    """Yield all that a container can see of each file, but its number of links."""
    for path in sorted([root, *root.rglob("*")]):
        found = path.lstat()
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        target = os.readlink(path) if path.is_symlink() else ""
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
        size = 0 if path.is_dir() else found.st_size
        yield (
            str(path.relative_to(root)),
            *(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_rdev, size),
            *(attributes, target, content),
        )


def test_every_kind_of_file_is_linked(trees: Trees) -> None:
    source = trees.source
    trees.file("bin/tool").chmod(0o4755)
    os.setxattr(trees.file("bin/ping"), "security.capability", CAPABILITY)
    os.link(source / "bin/tool", source / "bin/same")
    (source / "bin/link").symlink_to("../bin/tool")
    (source / "dangling").symlink_to("/nowhere")
    os.mknod(source / "deleted", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(source / "fifo", 0o640)
    (source / os.fsdecode(b"\xff\xfe name")).write_bytes(b"")
    (source / "empty").mkdir()
    os.lchown(source / "dangling", 7, 8)
    linked = trees.link()
    assert linked == LinkedFiles(9, 0)
    assert list(listing(trees.source)) == list(listing(trees.target))
    for path in ("bin/tool", "bin/ping", "bin/link", "dangling", "deleted", "null", "fifo"):
        assert trees.is_linked(path), path
    assert (trees.target / "bin/same").stat().st_ino == (trees.target / "bin/tool").stat().st_ino


def test_directories_get_owner_mode_attributes_and_times(trees: Trees) -> None:
    inner = trees.source / "a/b"
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"")
    os.setxattr(inner, "trusted.overlay.opaque", b"y")
    os.setxattr(inner, "user.note", b"kept")
    os.chown(inner, 1000, 1001)
    inner.chmod(0o3775)
    for each in (inner, inner.parent, trees.source):
        os.utime(each, ns=(LONG_AGO, LONG_AGO))
    trees.link()
    copy = trees.target / "a/b"
    found = copy.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o3775)
    assert os.getxattr(copy, "trusted.overlay.opaque") == b"y"
    assert os.getxattr(copy, "user.note") == b"kept"
    for each in (copy, copy.parent, trees.target):
        assert each.stat().st_mtime_ns == LONG_AGO, each


def test_labels_of_selinux_are_the_targets_own(trees: Trees) -> None:
    (trees.source / "a").mkdir()
    try:
        os.setxattr(trees.source / "a", "security.selinux", b"system_u:object_r:other_t:s0\0")
    except OSError as error:
        pytest.skip(f"no labels here: {error}")
    trees.link()
    assert "security.selinux" not in os.listxattr(trees.target / "a")


def test_what_a_directory_inherited_is_removed(trees: Trees) -> None:
    # acl(5) in the kernel's form: version 2, then tag, permissions and ID of each entry.
    entries = [
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, 1000),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    ]
    access_list = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    os.setxattr(trees.target, "system.posix_acl_default", access_list)
    (trees.source / "a").mkdir()
    trees.link()
    assert list(listing(trees.source)) == list(listing(trees.target))


@pytest.mark.parametrize("path", ["etc/crontab", "etc/cron.d/job", "etc/cron.daily/x/y", "var/spool/cron/crontabs/u"])
def test_what_cron_reads_is_copied_with_all_attributes(trees: Trees, path: str) -> None:
    file = trees.file(path, b"* * * * * root true\n")
    os.chown(file, 3, 4)
    file.chmod(0o4710)
    os.setxattr(file, "user.note", b"kept")
    os.setxattr(file, "security.capability", CAPABILITY)
    os.utime(file, ns=(LONG_AGO, LONG_AGO))
    assert trees.link() == LinkedFiles(0, 1)
    assert (trees.target / path).stat().st_nlink == 1
    assert list(listing(trees.source)) == list(listing(trees.target))


@pytest.mark.parametrize(
    "path", ["etc/crypttab.d/cron", "usr/etc/crontab", "var/spool/mail/cron", "crontab", "var/cron"]
)
def test_other_files_of_such_names_are_linked(trees: Trees, path: str) -> None:
    trees.file(path)
    assert trees.link() == LinkedFiles(1, 0)
    assert trees.is_linked(path)


def test_whiteouts_and_links_below_etc_cron_are_linked(trees: Trees) -> None:
    trees.file("etc/cron.d/job")
    os.mknod(trees.source / "etc/cron.d/gone", stat.S_IFCHR, os.makedev(0, 0))
    (trees.source / "etc/cron.d/link").symlink_to("job")
    assert trees.link() == LinkedFiles(2, 1)
    assert trees.is_linked("etc/cron.d/gone")
    assert trees.is_linked("etc/cron.d/link")


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM])
def test_a_file_of_any_kind_that_cannot_be_linked_is_copied(
    trees: Trees, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    file = trees.file("file", os.urandom(100_000))
    os.chown(file, 5, 6)
    (trees.source / "link").symlink_to("file")
    os.lchown(trees.source / "link", 7, 8)
    os.mkfifo(trees.source / "fifo", 0o620)
    os.mknod(trees.source / "deleted", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    monkeypatch.setattr(os, "link", refuse)
    assert trees.link() == LinkedFiles(0, 4)
    assert list(listing(trees.source)) == list(listing(trees.target))


def test_every_other_error_is_raised(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trees.file("file")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left"):
        trees.link()


def test_a_file_that_cannot_be_changed_is_copied(trees: Trees) -> None:
    file = trees.file("file")
    if subprocess.run(["chattr", "+i", file], check=False, capture_output=True).returncode:
        pytest.skip("needs chattr on a file system that knows it")
    try:
        assert trees.link() == LinkedFiles(0, 1)
    finally:
        subprocess.run(["chattr", "-i", file], check=True)


def test_the_files_themselves_are_untouched(trees: Trees) -> None:
    file = trees.file("a/file", b"content")
    trees.file("etc/cron.d/job")
    os.utime(file, ns=(LONG_AGO, LONG_AGO))
    before = list(listing(trees.source))
    trees.link()
    assert list(listing(trees.source)) == before
    (trees.target / "etc/cron.d/job").write_bytes(b"another")
    assert (trees.source / "etc/cron.d/job").read_bytes() == b"x"


def test_a_target_on_another_file_system_is_left_as_it_is(trees: Trees) -> None:
    trees.file("file")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(trees.target)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("needs mount")
    try:
        with pytest.raises(CannotLink, match="different file systems"):
            trees.link()
        assert not list(trees.target.iterdir())
    finally:
        subprocess.run(["umount", str(trees.target)], check=True)


def test_another_mount_of_the_same_file_system_is_told_before_anything_is_made(trees: Trees) -> None:
    trees.file("file")
    words = ["mount", "--bind", str(trees.target), str(trees.target)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("needs mount")
    try:
        with pytest.raises(CannotLink, match="different mounts"):
            trees.link()
        assert not list(trees.target.iterdir())
    finally:
        subprocess.run(["umount", str(trees.target)], check=True)


def test_a_target_that_is_not_empty_is_left_as_it_is(trees: Trees) -> None:
    trees.file("file")
    (trees.target / "there").write_bytes(b"")
    with pytest.raises(CannotLink, match="not empty"):
        trees.link()
    assert [each.name for each in trees.target.iterdir()] == ["there"]


def without_capability(number: int, function: Callable[[], object]) -> None:
    """Call `function` in a thread that lacks a capability (capabilities(7)), and raise what it raises."""
    libc, raised = ctypes.CDLL(None, use_errno=True), []

    def run() -> None:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        data[0] &= ~(1 << number)
        assert libc.capset(header, data) == 0
        try:
            function()
        except CannotLink as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_nothing_is_linked_without_the_right_to_see_all_attributes(trees: Trees) -> None:
    trees.file("file")
    os.setxattr(trees.source, "trusted.overlay.opaque", b"y")
    with pytest.raises(CannotLink, match="extended attributes"):
        without_capability(21, trees.link)  # CAP_SYS_ADMIN
    assert not list(trees.target.iterdir())


def test_a_directory_that_became_a_symbolic_link_is_not_followed(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a pod with a hostPath on the node's snapshots put it there."""
    trees.file("a/file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mkdir = os.mkdir

    def exchange(name: str, *rest: int, dir_fd: int) -> None:
        mkdir(name, *rest, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.symlink(elsewhere, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", exchange)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        trees.link()
    assert not list(elsewhere.iterdir())


def test_it_stops_where_it_is_told_to(trees: Trees) -> None:
    for number in range(10):
        trees.file(f"{number}/file")
    calls = 0

    def proceed() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise CannotLink("enough")

    with pytest.raises(CannotLink, match="enough"):
        trees.link(proceed)
    assert len(list(trees.target.iterdir())) == 3


def test_directories_that_are_too_deep_are_refused(trees: Trees) -> None:
    (trees.source / "/".join("d" * 300)).mkdir(parents=True)
    with pytest.raises(CannotLink, match="more than 200 directories"):
        trees.link()


def test_no_descriptor_is_left_open(trees: Trees) -> None:
    trees.file("a/b/file")
    trees.file("etc/cron.d/job")
    before = set(os.listdir("/proc/self/fd"))
    trees.link()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_hundred_thousand_files(trees: Trees) -> None:
    for number in range(100):
        directory = trees.source / f"{number:02}"
        directory.mkdir()
        first = directory / "0"
        first.write_bytes(b"")
        for other in range(1, 1000):
            # Links among them, which are made faster than files.
            os.link(first, directory / f"{other}")
    began = time.monotonic()
    assert trees.link() == LinkedFiles(100_000, 0)
    print(f"100,000 files in {time.monotonic() - began:.2f} s")
    assert sum(len(files) for _, _, files in os.walk(trees.target)) == 100_000
