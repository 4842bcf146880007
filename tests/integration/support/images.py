"""The images that the tests move about.  The same content each time, so a registry keeps one copy of it.

Random bytes (which no compression helps) and text (which compression shrinks ten times) in files of many kinds, and
`/sums`, with which the image checks itself: its command prints `/message` and the verdict of `sha256sum -c`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.integration.support.upstream import LAYER_GZIP, LAYER_TAR, Layer, digest_of

MB = 1_000_000
# Seconds: `ctr run` was seen to lose the last lines of a container that ended right after them.
PAUSE = 0.1
_CHECK = f"cat /message && /bin/busybox sha256sum -c -s /sums && echo every file is right && /bin/busybox sleep {PAUSE}"
COMMAND = ["/bin/busybox", "sh", "-c", _CHECK]
VERDICT = "every file is right"


def printing(file: str, busybox: str = "/bin/busybox") -> list[str]:
    """Return a container's command that prints a file."""
    return [busybox, "sh", "-c", f"{busybox} cat {file} && {busybox} sleep {PAUSE}"]


class LayerMaker:
    """Collects files for one layer, and their sums.  Paths are without a leading slash."""

    def __init__(self, sums: dict[str, str]) -> None:
        self._sums = sums
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode, entry.mtime = len(content), mode, 1_700_000_000
        self._tar.addfile(entry, io.BytesIO(content))
        if not Path(path).name.startswith(".wh."):
            self._sums[path] = hashlib.sha256(content).hexdigest()

    def link(self, path: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname, entry.mode = kind, target, 0o777
        self._tar.addfile(entry)

    def remove(self, path: str) -> None:
        """A whiteout (image-spec, "Layer Filesystem Changeset"): the file of a lower layer is gone in this one."""
        self.file(str(Path(path).parent / f".wh.{Path(path).name}"), b"")
        self._sums.pop(path)

    def layer(self, compress: int | None = 1) -> Layer:
        """`compress` is gzip's level (0 for bytes that do not compress), None for a plain tar."""
        self._tar.close()
        tar = self._buffer.getvalue()
        data = tar if compress is None else gzip.compress(tar, compress, mtime=0)
        return Layer(data, LAYER_TAR if compress is None else LAYER_GZIP, digest_of(tar))


def noise(size: int, seed: str) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def text(size: int, seed: str) -> bytes:
    """Bytes that compress about ten times."""
    words = random.Random(seed)
    line = b"".join(f"{words.getrandbits(24):x} lorem ipsum dolor sit amet\n".encode() for _ in range(2000))
    return (line * (size // len(line) + 1))[:size]


def base_layer(busybox: bytes, sums: dict[str, str]) -> Layer:
    maker = LayerMaker(sums)
    maker.file("bin/busybox", busybox, 0o755)
    maker.link("bin/sh", "busybox")
    return maker.layer()


def last_layer(message: str, sums: dict[str, str]) -> Layer:
    maker = LayerMaker(sums)
    maker.file("message", message.encode() + b"\n")
    maker.file("sums", "".join(f"{digest}  /{path}\n" for path, digest in sums.items() if path != "sums").encode())
    return maker.layer()


def small_layers(busybox: bytes, message: str) -> list[Layer]:
    """Two layers, for tests in which the content does not matter."""
    sums: dict[str, str] = {}
    return [base_layer(busybox, sums), last_layer(message, sums)]


def many_sided_layers(busybox: bytes, message: str) -> list[Layer]:
    """Seven layers, 109 MB to pull, 150 MB unpacked: files of many kinds, deletions, the same layer twice."""
    sums: dict[str, str] = {}
    makers: list[Callable[[], Layer]] = [lambda: base_layer(busybox, sums)]

    def big() -> Layer:
        maker = LayerMaker(sums)
        for number in range(4):
            maker.file(f"data/noise{number}", noise(25 * MB, f"many sided {number}"))
        return maker.layer(compress=0)

    def wordy() -> Layer:
        maker = LayerMaker(sums)
        for number in range(4):
            maker.file(f"data/text{number}", text(12 * MB, f"many sided {number}"))
        return maker.layer()

    def odd() -> Layer:
        maker = LayerMaker(sums)
        for number in range(2000):
            maker.file(f"small/{number % 50}/{number}", noise(number, f"small {number}"))
        maker.file("long/" + "/".join(["a directory with a long name"] * 6) + "/file", b"deep")
        maker.file("data/grüße \N{SNOWMAN}", b"name beyond ASCII")
        maker.file("data/empty", b"")
        maker.link("data/link", "noise0")
        maker.link("data/hard", "small/1/1", tarfile.LNKTYPE)
        maker.remove("data/text3")
        return maker.layer()

    def repeated() -> Layer:
        maker = LayerMaker(sums)
        maker.file("data/repeated", b"this layer is there twice")
        return maker.layer()

    makers += [big, wordy, repeated, odd, repeated, lambda: last_layer(message, sums)]
    return [make() for make in makers]


def large_layers(busybox: bytes, message: str, count: int) -> list[Layer]:
    """`count` layers of 50 MB and two small ones: plain tars that do not compress, so they are as big in any store."""
    sums: dict[str, str] = {}
    layers = [base_layer(busybox, sums)]
    for number in range(count):
        maker = LayerMaker(sums)
        maker.file(f"huge/{number}", noise(50 * MB, f"huge {number}"))
        layers.append(maker.layer(compress=None))
    return [*layers, last_layer(message, sums)]
