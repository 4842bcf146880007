"""The engine's files read directly, on real engines: the same bytes as `docker save` gives, and nothing left behind.

    K3DREG_TEST_ENGINE=unix:///var/run/docker.sock pytest tests/integration/test_direct_sources.py

or K3DREG_TEST_ENGINES for several, as `.ci/engines` describes it.  They are given small images whose names begin with
`k3dreg-direct`, which are removed again.  Files are read in place, too, where the engine's data directory can be
reached from here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase
from twisted.web.iweb import IResponse

from k3dreg.docker.client import EngineClient
from k3dreg.docker.endpoint import make_agent, make_pool, parse_engine_url
from k3dreg.docker.image import EngineImage, EngineInfo, ImageStore
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.helper_objects import OWNER
from k3dreg.engine_files.layout import LayerPaths, chain_ids, content_directories, content_path, engine_directories
from k3dreg.engine_files.local_files import LocalFiles, files_here
from k3dreg.engine_files.reader_files import ReaderFiles
from k3dreg.images.content_map import ContentMap
from k3dreg.images.content_store_source import ContentStoreSource
from k3dreg.images.export_source import ExportSource
from k3dreg.images.layer_store_source import LayerStoreSource
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ContentError, EngineError, FilesUnreachable, ManifestUnknown
from k3dreg.oci.manifest import Manifest
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.blob_store import open_store
from k3dreg.streaming.content import IBlob, IByteStream
from k3dreg.streaming.response_body import read_whole
from k3dreg.streaming.workers import Workers
from tests.fakes.archives import build_archive, layout_of
from tests.fakes.consumers import Reader
from tests.fakes.databases import open_database
from tests.fakes.images import FakeImage, FakeLayer, make_image, make_layer
from tests.integration.support import rig
from tests.integration.support.loading import load

_LIMIT = 200_000_000
_reactor: Any = global_reactor


def _plain(diff: bytes) -> FakeLayer:
    return FakeLayer(diff, diff, media_types.OCI_LAYER)


def _odd_layer() -> FakeLayer:
    """Everything that makes a layer's tar hard to put together again."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:

        def add(name: str, data: bytes = b"", **more: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime, info.mode = 1_700_000_000, 0o644
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))

        # Not in the order of names, in which an archive of the directory comes.
        add("z/", type=tarfile.DIRTYPE, mode=0o755)
        add("z/late", os.urandom(300_000))
        add("a/", type=tarfile.DIRTYPE, mode=0o755)
        add("./a/dotted", b"a name that begins with a dot and a slash")
        # A link whose name comes first in the directory, to a file whose name comes later.
        add("m/", type=tarfile.DIRTYPE, mode=0o755)
        add("m/zzz", os.urandom(70_000))
        add("m/aaa", type=tarfile.LNKTYPE, linkname="m/zzz")
        add("m/symbolic", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("a/empty")
        add("a/" + "/".join(["deep" * 20] * 3) + "/file", b"a long name", pax_headers={"comment": "pax"})
        add("a/not-\udcff-utf8", b"a name that is no text")
        add("a/gr\u00fc\u00dfe", b"a name that is text")
        add("a/capable", b"with an attribute", pax_headers={"SCHILY.xattr.user.k3dreg": "yes"})
        add("a/pipe", type=tarfile.FIFOTYPE)
        add("a/block", os.urandom(512))
        add("a/almost", os.urandom(511))
        add("big", os.urandom(3_000_000) + bytes(5_000_000))
    return _plain(out.getvalue() + bytes(7 * 512))  # with more padding than anybody asks for


def _whiteouts() -> FakeLayer:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in [("a/.wh.empty", b""), ("m/.wh..wh..opq", b""), ("m/new", b"new"), ("n" * 150, b"gnu")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return _plain(out.getvalue())


class _Direct(TestCase):
    """One real engine."""

    timeout = 120
    url = ""

    async def setUp(self) -> None:  # type: ignore[override]
        self.directory = tempfile.TemporaryDirectory(prefix="k3dreg-")
        self.addCleanup(self.directory.cleanup)
        pool = make_pool(_reactor)
        # Cleanups run last to first.
        self.addCleanup(lambda: deferLater(_reactor, 0.01, lambda: None))
        self.addCleanup(pool.closeCachedConnections)
        self.engine = EngineClient(
            make_agent(_reactor, parse_engine_url(self.url), pool=pool), _reactor, description="test"
        )
        self.workers = Workers(_reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        root = Path(self.directory.name)
        self.store = await open_store(root, self.workers, 10**9, _reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.store.close()))
        self.arrivals = Arrivals(self.store, self.workers)
        self.addCleanup(self.arrivals.shutdown)
        database = open_database(root)
        self.addCleanup(database.close)
        self.map = ContentMap(database, self.workers)
        self.info = await self.engine.info()
        self.owner = uuid.uuid4().hex[:12]
        self.before = await self.traces()

    async def traces(self) -> list[Any]:
        """Everything of ours that a user of the engine could see."""
        containers = await self.ask("GET", "/containers/json", {"all": "1"})
        images = await self.ask("GET", "/images/json", {"all": "1"})
        ours = [image["RepoTags"] for image in images if self.owner[:8] in str(image) or "k3dreg-reader" in str(image)]
        return [[c["Names"] for c in containers if c["Labels"].get(OWNER) == self.owner], ours]

    async def ask(self, method: str, path: str, params: dict[str, str]) -> Any:
        response = await self.engine.request(method, path, params=params)
        text = await read_whole(self.engine.body(response, "an answer"), _LIMIT)
        try:
            return json.loads(text)
        except ValueError:
            return text

    # -- images -------------------------------------------------------------------------------------

    async def hold(self, image: FakeImage) -> EngineImage:
        archive = build_archive(image, layout_of(self.info.store, self.info.api_version), named=True)
        await load(self.engine, archive)
        name = str(image.id(self.info.store))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(name)))
        return await self.engine.inspect(name)

    async def remove(self, name: str) -> None:
        try:
            await self.ask("DELETE", f"/images/{name}", {"force": "1"})
        except EngineError as error:
            if error.status != 404:
                raise

    def an_image(self) -> FakeImage:
        noise = make_layer({"noise": os.urandom(4_000_000)})
        name = f"docker.io/library/k3dreg-direct-{uuid.uuid4().hex[:12]}:1"
        odd = self.odd = _odd_layer()
        return make_image(name, [make_layer({"hello": b"hello\n"}), odd, _whiteouts(), noise, _plain(noise.diff)])

    # -- ways to the files --------------------------------------------------------------------------

    def reader(self, **more: Any) -> ReaderFiles:
        files = ReaderFiles(
            self.engine,
            self.workers,
            _reactor,
            self.arrivals,
            owner=self.owner,
            scratch=self.directory.name,
            **more,
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(files.close()))
        return files

    def here(self, path: str) -> str:
        """Where a path of the engine's host is here; skips the test if it is not."""
        for above in [Path("/"), *Path(self.url.removeprefix("unix://")).parents]:
            found = above / path.lstrip("/")
            if found.exists():
                return str(found)
        raise SkipTest(f"{path} of the engine's host is not to be seen from here")

    def local(self) -> LocalFiles:
        return files_here(self.engine, self.workers, docker_root=self.here(self.info.root_dir))

    def source(self, *files: IEngineFiles) -> ContentStoreSource | LayerStoreSource:
        source: ContentStoreSource | LayerStoreSource
        if self.info.store is ImageStore.CONTAINERD:
            source = ContentStoreSource(self.engine, files, self.map)
        else:
            source = LayerStoreSource(self.engine, files, self.store, self.arrivals, self.map, self.workers, _reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(source.shutdown()))
        return source

    async def bytes_of(self, blob: IBlob, start: int = 0, stop: int | None = None) -> bytes:
        reader = Reader()
        await blob.send(reader, start, blob.size if stop is None else stop)
        return reader.received

    async def whole(self, source: Any, image: EngineImage) -> dict[Digest, bytes]:
        """Everything that a node would fetch, as it would: the root, what it refers to, and what that does."""
        root = await source.root(image, Trace())
        found: dict[Digest, bytes] = {}
        to_read = [root]
        while to_read:
            described = to_read.pop()
            try:
                blob = await source.open(image, described.digest, Trace())
            except BlobUnknown:  # of another platform
                continue
            self.assertEqual(blob.size, described.size)
            data = found[described.digest] = await self.bytes_of(blob)
            self.assertEqual(Digest.of(data), described.digest)
            if described.media_type in media_types.MANIFESTS | media_types.INDEXES:
                to_read.extend(Manifest.parse(data, described.media_type).children())
        return found

    async def check_same(self, files: IEngineFiles) -> None:
        """Through `files` comes what `docker save` gives."""
        image = await self.hold(self.an_image())
        direct = await self.whole(self.source(files), image)
        with tempfile.TemporaryDirectory() as other:
            store = await open_store(Path(other), self.workers, 10**9, _reactor)
            arrivals = Arrivals(store, self.workers)
            with contextlib.closing(open_database(Path(other))) as database:
                content_map = ContentMap(database, self.workers)
                archive = ExportSource(self.engine, store, arrivals, content_map, self.workers, _reactor)
                saved = await self.whole(archive, image)
            await store.close()
        self.assertEqual(list(direct), list(saved))
        self.assertEqual(direct, saved)

    # -- the same bytes -----------------------------------------------------------------------------

    async def test_a_reader_container_gives_what_docker_save_gives(self) -> None:
        await self.check_same(self.reader())

    async def test_files_read_in_place_give_what_docker_save_gives(self) -> None:
        await self.check_same(self.local())

    async def test_a_part_of_a_blob_is_that_part(self) -> None:
        image = await self.hold(self.an_image())
        source = self.source(self.reader())
        await source.root(image, Trace())
        digest = self.odd.descriptor.digest
        blob = await source.open(image, digest, Trace())
        self.assertEqual(await self.bytes_of(blob, 2_000_001, 2_345_678), self.odd.diff[2_000_001:2_345_678])
        self.assertEqual(await self.bytes_of(blob, blob.size - 1), self.odd.diff[-1:])

    async def test_what_is_not_a_part_of_the_image_is_unknown_although_the_engine_has_it(self) -> None:
        image, other = await self.hold(self.an_image()), await self.hold(make_image(labels={"x": uuid.uuid4().hex}))
        with self.assertRaises(BlobUnknown):
            await self.source(self.reader()).open(other, self.odd.descriptor.digest, Trace())
        self.assertNotEqual(image.id, other.id)

    async def test_many_at_once_get_all_bytes_right(self) -> None:
        image = await self.hold(self.an_image())
        source = self.source(self.reader())
        wanted = await self.whole(source, image)
        for digest in wanted:
            if digest in {self.odd.descriptor.digest}:
                await self.store.discard(digest)
        blob = await source.open(image, self.odd.descriptor.digest, Trace())
        all_bytes = await DeferredList(
            [Deferred.fromCoroutine(self.bytes_of(blob)) for _ in range(12)], fireOnOneErrback=True
        )
        self.assertTrue(all(data == self.odd.diff for _, data in all_bytes))

    # -- nothing is left behind ---------------------------------------------------------------------

    async def test_only_stopped_containers_are_to_be_seen_and_none_after_a_clean_stop(self) -> None:
        files = self.reader()
        image = await self.hold(self.an_image())
        await self.source(files).root(image, Trace())
        await files.prepare()
        containers, images = await self.traces()
        self.assertEqual((len(containers), images), (4, []))
        states = await self.ask("GET", "/containers/json", {"all": "1"})
        self.assertEqual({c["State"] for c in states if c["Labels"].get(OWNER) == self.owner}, {"created"})
        await files.close()
        self.assertEqual(await self.traces(), self.before)

    async def test_containers_of_an_unclean_stop_are_found_again(self) -> None:
        path = engine_directories(self.info)[0][0]
        await self.reader().prepare()
        before, _ = await self.traces()
        self.assertEqual(len(before), 4)
        self.assertTrue((await self.reader().stat(path)).is_directory)
        after, _ = await self.traces()
        self.assertEqual(sorted(after), sorted(before))

    async def test_containers_that_somebody_removed_are_made_again(self) -> None:
        files = self.reader()
        path = engine_directories(self.info)[0][0]
        await files.prepare()
        before, _ = await self.traces()
        for names in before:
            await self.ask("DELETE", f"/containers{names[0]}", {"force": "1"})
        self.assertTrue((await files.stat(path)).is_directory)
        await files.prepare()
        after, _ = await self.traces()
        self.assertEqual(len(after), 4)
        self.assertFalse({str(names) for names in before} & {str(names) for names in after})

    async def test_reading_goes_on_while_somebody_removes_the_containers(self) -> None:
        files, path = self.reader(), engine_directories(self.info)[0][0]
        await files.prepare()
        end, removed, read = _reactor.seconds() + 4, 0, 0

        async def reading() -> None:
            nonlocal read
            while _reactor.seconds() < end:
                self.assertTrue((await files.stat(path)).is_directory)
                read += 1

        async def removing() -> None:
            nonlocal removed
            ours = {"all": "1", "filters": json.dumps({"label": [f"{OWNER}={self.owner}"]})}
            while _reactor.seconds() < end:
                for found in await self.ask("GET", "/containers/json", ours):
                    # As `docker container prune` does, two of them at a time: one by one, and some are gone before.
                    with contextlib.suppress(EngineError):
                        await self.ask("DELETE", f"/containers/{found['Id']}", {"force": "1"})
                        removed += 1
                await deferLater(_reactor, 1.0, lambda: None)

        work = [reading(), reading(), reading(), removing(), removing()]
        await gatherResults([Deferred.fromCoroutine(each) for each in work], consumeErrors=True)
        self.assertGreater(removed, 8)
        self.assertGreater(read, 20)

    async def test_the_image_may_be_removed_while_readers_are_there(self) -> None:
        fake = self.an_image()
        image = await self.hold(fake)
        source = self.source(self.reader())
        await source.root(image, Trace())
        await self.remove(str(image.id))
        with self.assertRaises(BlobUnknown):
            await self.until_unknown(source, image)

    async def test_an_image_that_is_removed_while_it_is_sent_arrives_whole_or_breaks_off(self) -> None:
        for make_files in (self.reader, self.local):
            files = make_files()
            noise = make_layer({"noise": os.urandom(20_000_000)}, compress=False)
            image = await self.hold(make_image(f"docker.io/library/k3dreg-direct-{self.owner}:1", [noise]))
            source = self.source(files)
            await source.root(image, Trace())
            blob = await source.open(image, noise.descriptor.digest, Trace())
            reader = Reader(100_000)
            sending = Deferred.fromCoroutine(blob.send(reader, 0, blob.size))
            path = self.a_file_of(image, noise.descriptor.digest, 0, "noise")
            while not reader.received:
                await deferLater(_reactor, 0.01, lambda: None)
            await self.remove(str(image.id))
            await self.until_gone(path)
            reader.eat(None)
            try:
                await sending
            except ContentError:
                self.assertLess(len(reader.received), blob.size)
            self.assertTrue(noise.blob.startswith(reader.received))

    async def until_gone(self, path: str) -> None:
        """Until the engine has collected a file."""
        while os.access(path, os.F_OK):
            await deferLater(_reactor, 0.01, lambda: None)

    async def until_unknown(self, source: Any, image: EngineImage) -> None:
        """The containerd store collects garbage in its own time, some ten milliseconds later."""
        for _ in range(50):
            await source.open(image, self.odd.descriptor.digest, Trace())
            await deferLater(_reactor, 0.1, lambda: None)

    # -- falling back -------------------------------------------------------------------------------

    async def test_a_directory_that_is_not_there_leaves_it_to_the_next_way(self) -> None:
        image = await self.hold(self.an_image())
        nowhere = files_here(self.engine, self.workers, docker_root=self.directory.name)
        with self.assertRaises(ManifestUnknown):
            await self.source(nowhere).root(image, Trace())
        await self.source(nowhere, self.reader()).root(image, Trace())

    async def test_a_bind_that_is_refused_costs_one_try(self) -> None:
        elsewhere = _Elsewhere(self.engine)
        files = ReaderFiles(
            elsewhere, self.workers, _reactor, self.arrivals, owner=self.owner, scratch=self.directory.name
        )
        for _ in range(3):
            with self.assertRaises(FilesUnreachable):
                await files.stat("/nonesuch/k3dreg")
        # Once for each place where the engine's files may be.
        self.assertEqual(elsewhere.creations, len(engine_directories(await elsewhere.info())))
        self.assertEqual(await self.traces(), self.before)

    async def test_a_file_that_was_removed_or_cut_leaves_it_to_the_next_source(self) -> None:
        if rig.own():
            rig.unavailable("the test damages the engine's own files:")
        image = await self.hold(self.an_image())
        path = self.a_file_of(image, self.odd.descriptor.digest, 1, "big")
        for files in (self.reader(), self.local()):
            source = self.source(files)
            await source.root(image, Trace())
            for damage in (lambda: Path(path).unlink(), lambda: os.truncate(path, os.stat(path).st_size - 1)):
                with _damaged(path, damage):
                    await self.assert_given_up(source, image)
                source = self.source(files)
            await self.whole(source, image)
            await self.store.discard(self.odd.descriptor.digest)

    def a_file_of(self, image: EngineImage, digest: Digest, number: int, name: str) -> str:
        """One of the engine's files that a layer needs: the blob, or the file of that name; where it is here."""
        if self.info.store is ImageStore.CONTAINERD:
            return self.here(content_path(content_directories(self.info)[0], digest))
        paths = LayerPaths.of(self.info)
        assert paths is not None
        chain = chain_ids(image.diff_ids)[number]
        cache_id = Path(self.here(paths.about(chain, "cache-id"))).read_text()
        return self.here(f"{paths.files(cache_id)}/{name}")

    async def assert_given_up(self, source: Any, image: EngineImage) -> None:
        """The blob is unknown before a byte of it is sent, or is not sent whole and unknown the next time."""
        digest = self.odd.descriptor.digest
        try:
            blob = await source.open(image, digest, Trace())
            reader = Reader()
            with self.assertRaises(ContentError):
                await blob.send(reader, 0, blob.size)
            self.assertLess(len(reader.received), blob.size)
        except BlobUnknown:
            return
        with self.assertRaises(BlobUnknown):
            await source.open(image, digest, Trace())

    # -- slow clients -------------------------------------------------------------------------------

    async def test_clients_that_stall_on_every_reader_do_not_starve_others(self) -> None:
        if self.info.store is not ImageStore.CONTAINERD:
            raise SkipTest("a layer is put together at the engine's pace, whoever reads it")
        layers = [make_layer({f"noise{number}": os.urandom(6_000_000)}) for number in range(5)]
        image = await self.hold(make_image(f"docker.io/library/k3dreg-direct-{self.owner}:1", layers))
        source = self.source(self.reader())
        root = await source.root(image, Trace())
        stalled = []
        for layer in layers[:4]:
            reader = Reader(100_000)
            blob = await source.open(image, layer.descriptor.digest, Trace())
            stalled.append((layer, reader, Deferred.fromCoroutine(blob.send(reader, 0, blob.size))))
        # What stalls is a client, and not the reading of a layer into the store.
        self.assertEqual((await source.open(image, root.digest, Trace())).size, root.size)
        last = await source.open(image, layers[4].descriptor.digest, Trace())
        self.assertEqual(await self.bytes_of(last), layers[4].blob)
        for layer, reader, sending in stalled:
            reader.eat(None)
            await sending
            self.assertEqual(reader.received, layer.blob)

    async def test_a_client_that_leaves_gives_the_reader_back(self) -> None:
        image = await self.hold(self.an_image())
        files = self.reader(size=2)  # one for long reads
        source = self.source(files)
        await source.root(image, Trace())
        blob = await source.open(image, self.odd.descriptor.digest, Trace())
        for _ in range(3):
            reader = Reader(100_000)
            sending = Deferred.fromCoroutine(blob.send(reader, 0, blob.size))
            sending.addErrback(lambda _: None)
            while not reader.received:
                await deferLater(_reactor, 0.01, lambda: None)
            reader.leave()
            await sending
        self.assertEqual(await self.bytes_of(blob), self.odd.diff)


@contextmanager
def _damaged(path: str, damage: Callable[[], object]) -> Iterator[None]:
    """`damage` the file, and put it back in the end."""
    data = Path(path).read_bytes()
    damage()
    try:
        yield
    finally:
        Path(path).write_bytes(data)


class _Elsewhere:
    """An engine that says its images are in a directory that its host does not have."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self.creations = 0

    async def info(self) -> EngineInfo:
        return evolve(await self._engine.info(), root_dir="/nonesuch/k3dreg", containerd_address="")

    async def request(self, method: str, path: str, **more: Any) -> IResponse:
        self.creations += path == "/containers/create"
        return await self._engine.request(method, path, **more)

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        return self._engine.body(response, what, silence=silence)


def _real_engines() -> dict[str, str]:
    return {engine.name: engine.url for engine in rig.engines()}


for _name, _url in _real_engines().items():
    _class = f"Direct{_name.title().replace('-', '').replace('_', '')}Tests"
    globals()[_class] = type(_class, (_Direct,), {"url": _url, "__module__": __name__})


@pytest.mark.skipif(bool(_real_engines()), reason="real engines are named, and tested")
def test_real_engines_are_named() -> None:
    rig.unavailable("neither K3DREG_TEST_ENGINE nor K3DREG_TEST_ENGINES is set:")


del _Direct  # pytest would take it for tests of its own
