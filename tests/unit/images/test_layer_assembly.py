from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k3dreg.engine_files.archive_reads import ArchivedTree
from k3dreg.engine_files.directories import EngineDirectory
from k3dreg.engine_files.local_files import LocalTree
from k3dreg.images.layer_assembly import LayerAssembly
from k3dreg.oci.errors import ArchiveError, ContentError, FileAbsent, K3dregError
from tests.fakes.images import make_tar
from tests.fakes.tar_splits import split, unpack

BATCH = 256 * 1024
FILES = st.dictionaries(
    st.sampled_from(["a", "b/c", "b/d", "b.e", "e/f/g", "e/f/h", "e/i", "j\udcff", "k" * 60]),
    st.binary(max_size=1500),
    max_size=9,
)


def put_together(tar_split: bytes) -> tuple[LayerAssembly, bytearray]:
    out = bytearray()
    assembly = LayerAssembly(tar_split, out.extend)
    assembly.begin()
    return assembly, out


def layer_of(files: dict[str, bytes], order: random.Random) -> bytes:
    """The files of a layer in any order, as other programs than Docker write them."""
    out = io.BytesIO()
    names = list(files)
    order.shuffle(names)
    with tarfile.open(fileobj=out, mode="w", errors="surrogateescape") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()


def archive_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """What the engine gives for the directory: everything below `diff/`, in the order of names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", errors="surrogateescape") as tar:
        top = tarfile.TarInfo("diff/")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name in sorted({*files, *(links or {})}, key=lambda name: name.split("/")):
            info = tarfile.TarInfo("diff/" + name)
            if links and name in links:
                info.type, info.linkname = tarfile.LNKTYPE, "diff/" + links[name]
                tar.addfile(info)
            else:
                info.size = len(files[name])
                tar.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, st.randoms(use_true_random=False))
def test_a_layer_comes_from_a_directory_as_it_was(
    tmp_path: Path, files: dict[str, bytes], order: random.Random
) -> None:
    tar = layer_of(files, order)
    tar_split, contents = split(tar)
    root = tmp_path / os.urandom(8).hex()
    unpack(contents, root)
    assembly, out = put_together(tar_split)
    tree = LocalTree(EngineDirectory(str(root)))
    while tree.give(assembly):
        pass
    tree.close()
    assert out == tar


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, st.randoms(use_true_random=False), st.integers(1, 700))
def test_a_layer_comes_from_an_archive_as_it_was(
    tmp_path: Path, files: dict[str, bytes], order: random.Random, cut: int
) -> None:
    tar = layer_of(files, order)
    tar_split, contents = split(tar)
    archive = archive_of(contents)
    assembly, out = put_together(tar_split)
    tree = ArchivedTree(str(tmp_path), assembly)
    for start in range(0, len(archive), cut):
        tree.feed(archive[start : start + cut])
    tree.finish()
    tree.close()
    assert out == tar
    assert not list(tmp_path.iterdir())


def test_a_file_of_which_the_archive_has_only_a_link_comes_from_its_target(tmp_path: Path) -> None:
    tar = make_tar([("m/zzz", b"content"), ("n", b"more")])
    tar_split, _ = split(tar)
    # Of two names of one file the engine's archive has the content under that which comes first.
    archive = archive_of({"m/aaa": b"content", "n": b"more"}, {"m/zzz": "m/aaa"})
    assembly, out = put_together(tar_split)
    tree = ArchivedTree(str(tmp_path), assembly)
    assert not tree.feed(archive)
    assert out == tar
    tree.close()


def test_bytes_are_passed_on_before_the_layer_ends(tmp_path: Path) -> None:
    tar = make_tar([("a", bytes(600_000)), ("b", b"b")])
    tar_split, contents = split(tar)
    archive = archive_of(contents)
    assembly, out = put_together(tar_split)
    tree = ArchivedTree(str(tmp_path), assembly)
    assert tree.feed(archive[:300_000])
    assert 290_000 < len(out) <= 300_000
    assert out == tar[: len(out)]


def test_writes_end_where_a_batch_does_or_a_flush_was() -> None:
    tar = make_tar([("a", os.urandom(3 * BATCH)), ("b", os.urandom(1000))])
    tar_split, contents = split(tar)
    out, ends = bytearray(), []

    def write(data: memoryview) -> None:
        out.extend(data)
        ends.append(len(out))

    assembly = LayerAssembly(tar_split, write)
    assembly.begin()
    # Some from elsewhere, and the rest put where there is room for it.
    assembly.add(contents["a"][:1000])
    assembly.flush()
    left = memoryview(contents["a"])[1000:]
    while left:
        room = assembly.room()
        room[:] = left[: len(room)]
        left = left[len(room) :]
        assembly.took(len(room))
    assert assembly.wanted == b"b"
    assembly.add(contents["b"])
    assert assembly.wanted is None
    assert out == tar
    assert ends == [512 + 1000, BATCH, 2 * BATCH, 3 * BATCH, len(tar)]


def test_there_is_room_for_no_more_than_is_missing() -> None:
    assembly, _ = put_together(split(make_tar([("a", bytes(BATCH)), ("b", bytes(7))]))[0])
    assert len(assembly.room()) == BATCH - 512
    assembly.took(BATCH - 512)
    assert len(assembly.room()) == 512
    assembly.took(512)
    assert len(assembly.room()) == 7


def test_a_tar_split_of_no_files_needs_none() -> None:
    tar = make_tar([("directory/", None)])
    assembly, out = put_together(split(tar)[0])
    assert assembly.wanted is None
    assert out == tar


def test_more_than_is_wanted_is_refused() -> None:
    assembly, _ = put_together(split(make_tar([("a", b"content")]))[0])
    assembly.add(b"conten")
    with pytest.raises(ContentError):
        assembly.add(b"ts")
    assembly.add(b"t")
    with pytest.raises(ContentError):
        assembly.add(b"t")


def fails_from_directory(root: Path, tar: bytes, error: type[K3dregError]) -> None:
    assembly, out = put_together(split(tar)[0])
    tree = LocalTree(EngineDirectory(str(root)))
    with pytest.raises(error):
        tree.give(assembly)
    tree.close()
    assert len(out) < len(tar)


def test_a_missing_or_short_file_is_no_layer(tmp_path: Path) -> None:
    tar = make_tar([("a/b", b"content")])
    fails_from_directory(tmp_path, tar, FileAbsent)
    (tmp_path / "a").mkdir()
    fails_from_directory(tmp_path, tar, FileAbsent)
    (tmp_path / "a" / "b").write_bytes(b"conten")
    fails_from_directory(tmp_path, tar, ContentError)


@pytest.mark.parametrize("kind", ["file", "directory", "pipe", "folder"])
def test_links_and_other_things_are_never_followed_or_waited_for(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "b").write_bytes(b"content")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    if kind == "file":
        (root / "a" / "b").symlink_to(secret / "b")
    elif kind == "directory":
        (root / "a").rmdir()
        (root / "a").symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(root / "a" / "b")
    else:
        (root / "a" / "b").mkdir()
    fails_from_directory(root, make_tar([("a/b", b"content")]), K3dregError)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/../secret"])
def test_names_that_lead_out_of_the_layer_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"content")
    with pytest.raises(ContentError):
        put_together(split(make_tar([(name, b"content")]))[0])


@pytest.mark.parametrize("content", [b"conten", b"contents", None])
def test_an_archive_without_the_right_file_is_no_layer(tmp_path: Path, content: bytes | None) -> None:
    tar = make_tar([("a", b"content")])
    archive = archive_of({} if content is None else {"a": content})
    assembly, out = put_together(split(tar)[0])
    tree = ArchivedTree(str(tmp_path), assembly)
    with pytest.raises(K3dregError):
        tree.feed(archive)
        tree.finish()
    tree.close()
    assert len(out) < len(tar)


def test_an_archive_that_breaks_off_is_no_layer(tmp_path: Path) -> None:
    tar_split, contents = split(make_tar([("a", bytes(5000))]))
    assembly, _ = put_together(tar_split)
    tree = ArchivedTree(str(tmp_path), assembly)
    assert tree.feed(archive_of(contents)[:4000])
    with pytest.raises(ArchiveError):
        tree.finish()


def test_nothing_is_read_after_it_was_given_up(tmp_path: Path) -> None:
    tar_split, contents = split(make_tar([("a", bytes(20_000_000))]))
    unpack(contents, tmp_path)
    assembly, _ = put_together(tar_split)
    tree = LocalTree(EngineDirectory(str(tmp_path)))
    assert tree.give(assembly)
    tree.close()
    with pytest.raises(ContentError):
        tree.give(assembly)
    tree.close()
