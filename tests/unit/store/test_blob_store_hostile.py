"""What a store is put through: kills, a full disk, many threads at once, and whatever hypothesis thinks of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

import k3dreg
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentGone, StoreFull
from k3dreg.store.blob_index import SMALL
from k3dreg.store.blob_store import SETTLING, BlobStore, open_store
from k3dreg.store.blob_writer import BlobWriter
from k3dreg.streaming.workers import Workers
from tests.fakes.consumers import Reader
from tests.fakes.workers import InlineWorkers

MIB = 1024 * 1024

_WRITER = """
import os, sys
from pathlib import Path
from k3dreg.store.blob_index import BlobIndex
from k3dreg.store.blob_files import BlobFiles
from k3dreg.store.state_directory import StateDirectory
from k3dreg.store.blob_writer import BlobWriter
files = BlobFiles(StateDirectory(Path(sys.argv[1])), BlobIndex(20_000_000, lambda digest: False), dict)
files.start()
while True:
    writer = BlobWriter(files, "sha256", False, lambda digest: files.index.release([digest]))
    for _ in range(10):
        writer.write(os.urandom(100_000))
        print("written", flush=True)
    writer.commit()
    print("committed", flush=True)
"""


def result(awaitable: Any) -> Any:
    """Of a coroutine that never has to wait."""
    results: list[Any] = []
    Deferred.fromCoroutine(awaitable).addBoth(results.append)
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


def open_inline(root: Path, limit: int, clock: Clock | None = None) -> BlobStore:
    clock = clock or Clock()
    return cast(BlobStore, result(open_store(root, InlineWorkers(clock), limit, clock)))


def blob_files(root: Path) -> list[Path]:
    return [path for path in (root / "blobs").rglob("*") if path.is_file()]


def assert_every_visible_blob_hashes_to_its_name(root: Path) -> None:
    for path in blob_files(root):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a_daemon_killed_while_it_writes_leaves_nothing_half_written(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(k3dreg.__file__).parent.parent)}
    for run in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(40 + 7 * run):  # it says so after each write and each commit
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert_every_visible_blob_hashes_to_its_name(tmp_path)
        store = open_inline(tmp_path, 10_000_000)
        assert list((tmp_path / "staging").iterdir()) == []
        assert store.usage().count == len(blob_files(tmp_path)) >= 3
        assert store.usage().bytes <= 10_000_000
        result(store.close())
        shutil.rmtree(tmp_path / "blobs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 4 MiB, and what a store keeps in reserve."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield disk / "state"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_a_clear_error_and_the_store_lives_on(small_disk: Path) -> None:
    store = open_inline(small_disk, 100 * MIB)
    small = result(store.put(b"small"))
    release = store.hold([small])
    writer = store.writer()
    with pytest.raises(StoreFull, match="no room is left on the disk of the state directory"):
        for _ in range(5):
            writer.write(bytes(MIB))
    assert list((small_disk / "staging").iterdir()) == []
    assert result(store.put(b"room again")) == Digest.of(b"room again")
    assert result(store.get(small).read()) == b"small"  # type: ignore[union-attr]
    release()
    result(store.close())


def test_a_full_disk_makes_the_store_evict_what_docker_can_give_again(small_disk: Path) -> None:
    clock = Clock()
    store = open_inline(small_disk, 100 * MIB, clock)
    old = [result(store.put(b"%d" % number + bytes(MIB))) for number in range(3)]
    clock.advance(SETTLING)
    new = result(store.put(bytes(3 * MIB)))
    assert [store.has(digest) for digest in (*old, new)] == [False, False, False, True]
    assert_every_visible_blob_hashes_to_its_name(small_disk)
    result(store.close())


class ThreadsTests(TestCase):
    """With real threads."""

    def setUp(self) -> None:
        self.workers = Workers(reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.root = Path(self.mktemp())

    async def open(self, limit: int) -> BlobStore:
        store = await open_store(self.root, self.workers, limit, cast(Any, reactor))
        self.addCleanup(lambda: Deferred.fromCoroutine(store.close()))
        return store

    async def test_the_same_content_committed_by_eight_at_once_is_kept_once(self) -> None:
        store = await self.open(100 * MIB)
        barrier = threading.Barrier(8)

        def write() -> Digest:
            writer = store.writer()
            writer.write(bytes(MIB))
            barrier.wait(10)
            return writer.commit()

        digests = await gatherResults([self.workers.run(write) for _ in range(8)])
        self.assertEqual(set(digests), {Digest.of(bytes(MIB))})
        self.assertEqual((store.usage().bytes, store.usage().count, len(blob_files(self.root))), (MIB, 1, 1))
        self.assertEqual(list((self.root / "staging").iterdir()), [])

    async def test_commits_evictions_and_readers_at_once_never_give_a_wrong_byte(self) -> None:
        store = await self.open(4 * SMALL)
        documents = [b"%d" % number * (SMALL // 2) for number in range(10)]
        digests = [Digest.of(document) for document in documents]
        read = 0

        async def churn(seed: int) -> None:
            nonlocal read
            chance = random.Random(seed)
            for _ in range(40):
                number = chance.randrange(10)
                await store.put(documents[number])
                # Evicted at once, as if it had settled long ago.
                await self.workers.run(store._files.evict, chance.choice([None, SMALL]))
                blob = store.get(digests[chance.choice([number, chance.randrange(10)])])
                if blob is None:
                    continue
                reader = Reader()
                with contextlib.suppress(ContentGone):  # evicted before it could be opened
                    await blob.send(reader, 0, blob.size)
                    read += 1
                    assert Digest.of(reader.received) == blob.digest

        def release_at_once(digest: Digest) -> None:
            store._files.index.release([digest])

        store._settle = release_at_once  # type: ignore[method-assign]
        await gatherResults([Deferred.fromCoroutine(churn(seed)) for seed in range(6)])
        await self.workers.stop()  # evictions may be under way
        assert_every_visible_blob_hashes_to_its_name(self.root)
        usage = store.usage()
        self.assertEqual(usage.count, len(blob_files(self.root)))
        self.assertEqual(usage.bytes, sum(path.stat().st_size for path in blob_files(self.root)))
        self.assertGreater(read, 0)

    async def test_aborting_waits_for_a_write_whose_asker_was_cancelled(self) -> None:
        store = await self.open(100 * MIB)
        writer = await self.workers.run(store.writer)
        assert isinstance(writer, BlobWriter)
        with writer._lock:  # as a write that is under way holds it
            aborting = self.workers.run(writer.abort)
            await self.workers.run(int)  # time enough for it to be done
            self.assertFalse(aborting.called)
            self.assertEqual(len(list((self.root / "staging").iterdir())), 1)
        await aborting
        self.assertEqual(list((self.root / "staging").iterdir()), [])


class StoreMachine(RuleBasedStateMachine):
    """Puts, gets, holds, releases, discards and restarts, in whatever order, with what must always be true."""

    kept = Bundle("kept")
    releases = Bundle("releases")
    limit = 6 * SMALL

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="k3dreg-test-"))
        self.clock = Clock()
        self.store = open_inline(self.root, self.limit, self.clock)
        self.held: list[Digest] = []
        self.durable = False
        self.stores = [self.store]
        self.holds: list[Callable[[], None]] = []

    def teardown(self) -> None:
        # Also the stores of daemons that were killed: this process lives on.
        for store in reversed(self.stores):
            result(store.close())
        for release in self.holds:
            release()
        shutil.rmtree(self.root)

    @rule(target=kept, number=st.integers(0, 9), size=st.sampled_from([10, SMALL - 1, SMALL, 2 * SMALL, 7 * SMALL]))
    def put(self, number: int, size: int) -> Digest:
        data = b"%d" % number + bytes(size - 1)
        digest = cast(Digest, result(self.store.put(data)))
        assert self.store.has(digest)
        return digest

    @rule(digest=kept)
    def read(self, digest: Digest) -> None:
        blob = self.store.get(digest)
        if blob is not None:
            assert Digest.of(result(blob.read())) == digest

    @rule(target=releases, digest=kept)
    def hold(self, digest: Digest) -> tuple[Digest, Any, BlobStore]:
        self.held.append(digest)
        self.holds.append(self.store.hold([digest]))
        return digest, self.holds[-1], self.store

    @rule(held=consumes(releases))
    def release(self, held: tuple[Digest, Any, BlobStore]) -> None:
        digest, release, store = held
        if store is self.store:  # else the process that held it is gone
            release()
            self.held.remove(digest)

    @rule(digest=kept)
    def discard(self, digest: Digest) -> None:
        result(self.store.discard(digest))
        assert not self.store.has(digest)

    @rule(digest=kept)
    def vanish(self, digest: Digest) -> None:
        (self.root / "blobs" / "sha256" / digest.hex[:2] / digest.hex).unlink(missing_ok=True)
        blob = self.store.get(digest)
        if blob is not None:
            with pytest.raises(ContentGone):
                result(blob.read())
        assert not self.store.has(digest)

    @rule(clean=st.booleans(), reboot=st.booleans())
    def restart(self, clean: bool, reboot: bool) -> None:
        before = self.store.usage()
        if clean:
            result(self.store.close())
        else:
            self.clock = Clock()  # whose time comes no more for what the killed daemon had planned
            self.store._when_closed()
        if reboot:
            (self.root / "session").unlink()
        (self.root / "staging" / "half").write_bytes(b"half")
        self.held.clear()
        self.store = open_inline(self.root, self.limit, self.clock)
        self.stores.append(self.store)
        after = self.store.usage()
        assert after.bytes <= self.limit
        assert (after.bytes, after.count) == (before.bytes, before.count) or before.bytes > self.limit

    @rule()
    def settle(self) -> None:
        self.clock.advance(SETTLING)
        if self.store.usage().bytes > self.limit:
            held = {digest for digest in self.held if self.store.has(digest)}
            assert self.store.usage().count == len(held)

    @invariant()
    def every_visible_blob_hashes_to_its_name(self) -> None:
        assert_every_visible_blob_hashes_to_its_name(self.root)

    @invariant()
    def usage_is_what_is_on_the_disk(self) -> None:
        files = blob_files(self.root)
        usage = self.store.usage()
        assert (usage.count, usage.bytes) == (len(files), sum(path.stat().st_size for path in files))
        assert list((self.root / "staging").iterdir()) == []


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestStoreMachine = StoreMachine.TestCase
