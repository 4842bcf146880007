"""One file out of the archive API: what is given up, and when its reader is free again."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files.archive_reads import ArchivedFile
from k3dreg.oci.errors import EngineUnavailable, FileAbsent
from tests.fakes.archive_api import ArchiveStream


class ArchivedFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.released: list[None] = []

    def test_an_archive_without_a_file_is_given_up_and_its_reader_is_free(self) -> None:
        name = b"directory/"
        header = bytearray(name.ljust(100, b"\0") + b"0000755\0" + b"0000000\0" * 2 + b"00000000000\0" * 2)
        header += b" " * 8 + b"5" + bytes(355)
        header[148:156] = b"%06o\0 " % sum(header)
        stream = ArchiveStream(bytes(header) + bytes(1 << 20), 512)
        self.check(stream, FileAbsent)

    def test_an_archive_that_breaks_off_is_given_up_and_its_reader_is_free(self) -> None:
        stream = ArchiveStream(bytes(1024), 512)
        stream.breaks_at = 512
        self.check(stream, EngineUnavailable)

    def check(self, stream: ArchiveStream, error: type[Exception]) -> None:
        file = ArchivedFile(stream, lambda: self.released.append(None))
        self.failureResultOf(Deferred.fromCoroutine(file.read()), error)
        self.assertTrue(stream.closed)
        self.assertEqual(self.released, [None])
