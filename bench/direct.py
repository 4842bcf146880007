"""How fast an image's bytes come from an engine: each source beside `docker save` to nowhere, in one run.

    python -m bench.direct --docker unix:///var/run/docker.sock

An image is made for it (`k3dreg-bench-direct:1`, layers of random bytes and of many small files) and removed again;
`--image NAME` takes one that is there.  Blobs are fetched three at a time, as a node does, and thrown away; every
source begins with nothing in its store.  `--data-root DIR` is where the engine's data directory is here; without it,
files are read in place only where the engine says they are.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import react
from zope.interface import implementer

from k3dreg.docker.client import EngineClient
from k3dreg.docker.endpoint import make_agent, make_pool, parse_engine_url
from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.local_files import files_here
from k3dreg.engine_files.reader_files import ReaderFiles
from k3dreg.images.content_map import ContentMap
from k3dreg.images.content_store_source import ContentStoreSource
from k3dreg.images.layer_store_source import LayerStoreSource
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.errors import EngineError, NotFound
from k3dreg.oci.manifest import Manifest
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.blob_store import open_store
from k3dreg.streaming.response_body import read_whole
from k3dreg.streaming.workers import Workers
from tests.fakes.archives import build_archive, layout_of
from tests.fakes.databases import open_database
from tests.fakes.images import FakeLayer, make_image

_NAME = "docker.io/library/k3dreg-bench-direct:1"
_LIMIT = 1 << 40


@frozen
class Result:
    """Seconds until the manifest was known, until a blob's first byte, and until all of them were there."""

    what: str
    manifest: float
    first: float
    whole: float
    megabytes: float
    processor: float


@implementer(IConsumer)
class Nowhere:
    """Takes everything at once."""

    def __init__(self, took: Callable[[int], None]) -> None:
        self._took = took

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...  # noqa: N802

    def unregisterProducer(self) -> None: ...  # noqa: N802

    def write(self, data: bytes) -> None:
        self._took(len(data))


class Stopwatch:
    def __init__(self) -> None:
        self.started = time.monotonic()
        self._processor = time.process_time()
        self.manifest = self.first = 0.0
        self.bytes = 0

    def took(self, count: int) -> None:
        if not self.first:
            self.first = time.monotonic() - self.started
        self.bytes += count

    def result(self, what: str) -> Result:
        whole, processor = time.monotonic() - self.started, time.process_time() - self._processor
        return Result(
            what,
            self.manifest or self.first,
            self.first,
            whole,
            self.bytes / 1e6,
            processor,
        )


def layers(megabytes: int, count: int) -> list[FakeLayer]:
    """Half random bytes in large files, half many small ones."""
    made = []
    source = random.Random(1)
    for number in range(count):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            left = megabytes * 1_000_000 // count
            while left > 0:
                size = 4_000_000 if left > megabytes * 500_000 // count else source.randrange(500, 60_000)
                done = megabytes * 1_000_000 // count - left  # names in order, as in nearly all images
                info = tarfile.TarInfo(f"layer{number}/{done // 1_000_000:04}/{done:012}")
                info.size = size
                tar.addfile(info, io.BytesIO(os.urandom(size)))
                left -= size
        made.append(FakeLayer(out.getvalue(), out.getvalue(), media_types.OCI_LAYER))
    return made


class Bench:
    def __init__(self, reactor: Any, options: argparse.Namespace) -> None:
        self.reactor = reactor
        self.options = options
        self.pool = make_pool(reactor)
        agent = make_agent(reactor, parse_engine_url(options.docker), pool=self.pool)
        self.engine = EngineClient(agent, reactor, description=options.docker)
        self.workers = Workers(reactor)

    async def run(self) -> None:
        self.workers.start()
        name = self.options.image or _NAME
        try:
            if not self.options.image:
                await self.make()
            image = await self.engine.inspect(name)
            info = await self.engine.info()
            print(f"Docker {info.version}, {info.store.value} image store, {os.cpu_count()} processors, {name}")
            results = []
            for _ in range(self.options.runs):
                results.append(await self.save(image))
                for what, files in self.ways():
                    results.append(await self.fetch(what, image, files))
            show(results)
        finally:
            if not self.options.image:
                await self.remove(name)
            await self.workers.stop()
            await self.pool.closeCachedConnections()

    async def make(self) -> None:
        info = await self.engine.info()
        image = make_image(_NAME, layers(self.options.megabytes, self.options.layers))
        archive = build_archive(image, layout_of(info.store, info.api_version), named=True)
        headers = {"Content-Type": "application/x-tar"}
        loaded = await self.engine.request(
            "POST", "/images/load", params={"quiet": "1"}, headers=headers, data=archive, max_wait=600
        )
        await read_whole(self.engine.body(loaded, "a load"), 10_000_000)

    async def remove(self, name: str) -> None:
        try:
            removed = await self.engine.request("DELETE", f"/images/{name}", params={"force": "1"})
            await read_whole(self.engine.body(removed, "a removal"), 10_000_000)
        except EngineError as error:
            print(error, file=sys.stderr)

    async def save(self, image: EngineImage) -> Result:
        watch = Stopwatch()
        stream = await self.engine.save(image.id)
        while data := await stream.read():
            watch.took(len(data))
        return watch.result("docker save to nowhere")

    def ways(self) -> list[tuple[str, Callable[[str, Arrivals], IEngineFiles]]]:
        return [
            (
                "reader containers",
                lambda scratch, arrivals: ReaderFiles(
                    self.engine, self.workers, self.reactor, arrivals, owner="bench", scratch=scratch
                ),
            ),
            (
                "files in place",
                lambda _, __: files_here(self.engine, self.workers, docker_root=self.options.data_root),
            ),
        ]

    async def fetch(self, what: str, image: EngineImage, make_files: Callable[[str, Arrivals], IEngineFiles]) -> Result:
        info = await self.engine.info()
        with tempfile.TemporaryDirectory(dir=self.options.scratch) as scratch:
            store = await open_store(Path(scratch), self.workers, _LIMIT, self.reactor)
            arrivals = Arrivals(store, self.workers)
            database = open_database(Path(scratch))
            content_map = ContentMap(database, self.workers)
            files = make_files(scratch, arrivals)
            source: ContentStoreSource | LayerStoreSource
            if info.store is ImageStore.CONTAINERD:
                source = ContentStoreSource(self.engine, [files], content_map)
            else:
                source = LayerStoreSource(
                    self.engine, [files], store, arrivals, content_map, self.workers, self.reactor
                )
            watch = Stopwatch()
            try:
                await self.pull(source, image, watch)
            except NotFound as error:
                print(f"{what}: {error}", file=sys.stderr)
            result = watch.result(what)
            await arrivals.shutdown()
            await files.close()
            await source.shutdown()
            await store.close()
            database.close()
        return result

    async def pull(self, source: Any, image: EngineImage, watch: Stopwatch) -> None:
        """As a node does: the manifest, and then blobs, three at a time."""
        root = await source.root(image, Trace())
        watch.manifest = time.monotonic() - watch.started
        slots = DeferredSemaphore(3)

        async def one(described: Descriptor) -> None:
            await slots.acquire()
            try:
                await fetch(described)
            finally:
                slots.release()

        async def fetch(described: Descriptor) -> None:
            blob = await source.open(image, described.digest, Trace())
            await blob.send(Nowhere(watch.took), 0, blob.size)

        manifest = Manifest.parse(await (await source.open(image, root.digest, Trace())).read(), root.media_type)
        if manifest.is_index:
            held = image.children or ()
            child = next((c.descriptor for c in held if c.available), manifest.manifests[0])
            manifest = Manifest.parse(await (await source.open(image, child.digest, Trace())).read())
        await gatherResults([Deferred.fromCoroutine(one(part)) for part in manifest.children()])


def show(results: list[Result]) -> None:
    print(f"{'':26}{'manifest':>10}{'first byte':>12}{'all':>9}{'MB/s':>8}{'CPU s/GB':>10}{'of docker save':>16}")
    slowest = 1.0
    for result in results:
        if result.what.startswith("docker save"):
            slowest = result.whole
        rate = result.megabytes / result.whole
        cost = result.processor / max(result.megabytes, 0.001) * 1000
        print(
            f"{result.what:26}{result.manifest:9.3f}s{result.first:11.3f}s{result.whole:8.2f}s"
            f"{rate:8.0f}{cost:10.2f}{slowest / result.whole:14.1f} x"
        )
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, the making included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docker", default=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    parser.add_argument("--image", default="")
    parser.add_argument("--data-root", default="")
    parser.add_argument("--scratch", default=None, help="where the sources keep what they keep")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(Bench(reactor, options).run()))


if __name__ == "__main__":
    main()
