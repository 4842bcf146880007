from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files.local_files import files_here
from k3dreg.images.layer_assembly import LayerAssembly
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, FileAbsent, FilesUnreachable
from tests.fakes.archive_api import INFO, FakeArchiveApi
from tests.fakes.consumers import Reader
from tests.fakes.images import make_tar
from tests.fakes.tar_splits import split, unpack
from tests.fakes.workers import InlineWorkers

DATA = os.urandom(1_500_000)
DIGEST = Digest.of(DATA)


class LocalFilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.path = self.root / DIGEST.hex
        self.path.write_bytes(DATA)
        self.engine = FakeArchiveApi({})
        self.files = files_here(self.engine, InlineWorkers())

    def result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def fails(self, coroutine: Coroutine[Any, Any, Any], kind: type[Exception]) -> Any:
        return self.failureResultOf(Deferred.fromCoroutine(coroutine), kind).value

    def test_a_file_is_what_it_is(self) -> None:
        stat = self.result(self.files.stat(str(self.path)))
        self.assertEqual((stat.size, stat.is_file, stat.is_directory), (len(DATA), True, False))
        self.assertTrue(self.result(self.files.stat(str(self.root))).is_directory)
        self.assertEqual(self.result(self.files.read(str(self.path), len(DATA))), DATA)
        self.fails(self.files.read(str(self.path), len(DATA) - 1), ContentError)

    def test_what_is_not_there_or_no_file_is_absent(self) -> None:
        for path in (self.root / "none", self.path / "below"):
            self.fails(self.files.stat(str(path)), FileAbsent)
            self.fails(self.files.read(str(path), 9), FileAbsent)
            self.fails(self.files.blob(str(path), DIGEST), FileAbsent)
        os.mkfifo(self.root / "pipe")
        for name in ("", "pipe"):
            self.fails(self.files.blob(str(self.root / name), DIGEST), FileAbsent)

    def test_what_may_not_be_read_is_unreachable_and_its_path_is_not_told(self) -> None:
        self.path.chmod(0)
        if os.geteuid() == 0:  # who may read everything
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)
        error = self.fails(self.files.read(str(self.path), 9), FilesUnreachable)
        self.assertNotIn("/", str(error))

    def test_a_blob_is_sent_whole_and_in_parts(self) -> None:
        blob = self.result(self.files.blob(str(self.path), DIGEST, len(DATA)))
        for start, stop in [(0, len(DATA)), (700_000, 700_001), (3, 3)]:
            reader = Reader()
            self.result(blob.send(reader, start, stop))
            self.assertEqual(reader.received, DATA[start:stop])

    def test_a_blob_of_another_size_is_refused(self) -> None:
        self.fails(self.files.blob(str(self.path), DIGEST, len(DATA) + 1), ContentError)

    def test_a_blob_that_the_engine_removes_while_it_is_sent_is_sent_to_its_end(self) -> None:
        blob = self.result(self.files.blob(str(self.path), DIGEST))
        reader = Reader(appetite=1)
        sending = Deferred.fromCoroutine(blob.send(reader, 0, blob.size))
        self.path.unlink()
        reader.eat(None)
        self.successResultOf(sending)
        self.assertEqual(reader.received, DATA)

    def test_a_blob_that_the_engine_removes_before_it_is_sent_is_gone(self) -> None:
        blob = self.result(self.files.blob(str(self.path), DIGEST))
        self.path.unlink()
        self.fails(blob.send(Reader(), 0, blob.size), ContentGone)
        self.fails(blob.read(), ContentGone)

    def test_a_blob_that_becomes_shorter_is_never_sent_whole(self) -> None:
        blob = self.result(self.files.blob(str(self.path), DIGEST))
        os.truncate(self.path, len(DATA) - 1)
        reader = Reader()
        self.fails(blob.send(reader, 0, blob.size), ContentGone)
        self.assertLess(len(reader.received), len(DATA))

    def test_documents_are_verified(self) -> None:
        self.assertEqual(self.result(self.result(self.files.blob(str(self.path), DIGEST)).read()), DATA)
        other = self.result(self.files.blob(str(self.path), Digest.of(b"other")))
        self.fails(other.read(), ContentError)

    def test_links_to_blobs_are_not_followed(self) -> None:
        (self.root / "link").symlink_to(self.path)
        self.fails(self.files.blob(str(self.root / "link"), DIGEST), ContentError)

    def test_the_engine_s_directories_may_be_elsewhere_here(self) -> None:
        self.engine.engine_info = evolve(INFO, root_dir="/var/lib/docker")
        files = files_here(self.engine, InlineWorkers(), docker_root=str(self.root))
        self.assertTrue(self.result(files.stat(f"/var/lib/docker/{DIGEST.hex}")).is_file)
        self.fails(files.stat(f"/var/lib/docker-other/{DIGEST.hex}"), FileAbsent)
        files = files_here(self.engine, InlineWorkers(), content_store=str(self.root))
        for directory in ("/var/lib/docker/containerd/daemon", "/var/lib/containerd"):
            path = f"{directory}/io.containerd.content.v1.content/{DIGEST.hex}"
            self.assertTrue(self.result(files.stat(path)).is_file)

    def test_a_layer_is_filled_from_a_directory_and_progress_is_told(self) -> None:
        tar = make_tar([("a/b", os.urandom(20_000_000)), ("c", b"c")])
        tar_split, contents = split(tar)
        unpack(contents, self.root)
        out = bytearray()
        assembly = LayerAssembly(tar_split, out.extend)
        assembly.begin()
        seen: list[int] = []

        async def progress() -> None:
            seen.append(len(out))

        self.result(self.files.fill(str(self.root), assembly, progress))
        self.assertEqual(out, tar)
        self.assertGreater(len(seen), 2)
        self.assertEqual(seen, sorted(seen))
        self.assertEqual(seen[-1], len(tar))

    def test_no_descriptor_is_left_open(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        tar_split, contents = split(make_tar([("a/b/c", b"c"), ("a/d/e", b"e")]))
        unpack(contents, self.root)
        (self.root / "a/d/e").unlink()
        assembly = LayerAssembly(tar_split, lambda _: None)
        assembly.begin()

        async def progress() -> None: ...

        self.fails(self.files.fill(str(self.root), assembly, progress), FileAbsent)
        self.fails(self.files.blob(str(self.path), DIGEST, 1), ContentError)
        self.fails(self.files.blob(str(self.root), DIGEST), FileAbsent)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
