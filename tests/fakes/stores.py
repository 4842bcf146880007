"""A real store for tests, on a real disk, without threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.oci.digest import Digest
from k3dreg.store import blob_writer
from k3dreg.store.blob_index import SMALL
from k3dreg.store.blob_store import SETTLING, BlobStore, open_store
from k3dreg.streaming.content import IBlob
from tests.fakes.workers import InlineWorkers

# Bytes: room for five layers of the usual size.
LIMIT = 10 * SMALL


def layer(number: int, size: int = 2 * SMALL) -> bytes:
    """Some bytes that are no other layer's."""
    return b"%8d" % number + bytes(size - 8)


class StoreTestCase(SynchronousTestCase):
    """With a store in a directory of its own, and a clock that only the test advances."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.clock = Clock()
        self.store = self.open()

    def open(self, limit: int = LIMIT) -> BlobStore:
        store: BlobStore = self.result(open_store(self.root, InlineWorkers(self.clock), limit, self.clock))
        self.close_in_the_end(store)
        return store

    def close_in_the_end(self, store: BlobStore) -> None:
        """Close the store when the test ends, unless the test has closed it."""
        self.addCleanup(lambda: self.result(store.close()))

    def reopen(self, limit: int = LIMIT) -> None:
        self.result(self.store.close())
        self.store = self.open(limit)

    def result(self, awaitable: Awaitable[Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(cast(Any, awaitable)))

    def put(self, data: bytes, settle: bool = True) -> Digest:
        digest = self.result(self.store.put(data))
        if settle:
            self.clock.advance(SETTLING)
        return cast(Digest, digest)

    def blob(self, digest: Digest) -> IBlob:
        blob = self.store.get(digest)
        assert blob is not None
        return blob

    def path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    def staged(self) -> list[Path]:
        return list((self.root / "staging").iterdir())


def refuse_writes(case: SynchronousTestCase) -> None:
    """Let no blob of the store be begun from now on, as on a disk that is mounted read-only."""

    def refuse(*arguments: object, **more: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    case.patch(blob_writer, "_create", refuse)


def fill_disk_after(case: SynchronousTestCase, size: int) -> None:
    """Let the store write `size` more bytes of blobs; then its disk is full."""
    left = size

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = os.write(descriptor, data[:left])
        left -= count
        return count

    case.patch(blob_writer, "_append", write)
