"""Parse `tar-split.json.gz`, which the classic image store keeps for each layer in addition to its unpacked files.

The files alone do not determine the bytes of the layer's tar: their order, padding, header formats and owners' names
are lost.  So the engine keeps everything but the files' contents, as one JSON object per line, in the order of the tar
(github.com/vbatts/tar-split, tar/storage/entry.go):

    {"type":2,"payload":"<base64>","position":0}                        raw bytes: headers, padding, the tar's end
    {"type":1,"name":"a/b","size":3,"payload":"<crc64>","position":1}   the content of that file follows here
    {"type":1,"name_raw":"<base64>",...}                                the same for a name that is not UTF-8

An entry without `size` has no content: a directory, a link, or an empty file.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator

from attrs import frozen

from k3dreg.oci.errors import ContentError

_FILE, _SEGMENT = 1, 2
# The beginning of the lines that make up most of the file, as the engine writes them.
_SEGMENT_LINE = b'{"type":2,"payload":"'
# Bytes of a line.  A segment has headers and padding; even one with pax records of a few MiB is much shorter.
LONGEST_LINE = 64 * 1024 * 1024


@frozen
class Raw:
    """Bytes of the tar that are copied unchanged."""

    data: bytes


@frozen
class FileContent:
    """The content of a file belongs here: `size` bytes, more than 0.

    `name` is the name in the tar: any bytes, possibly an absolute path or one with `..`.
    """

    name: bytes
    size: int


def read_tar_split(lines: Iterable[bytes]) -> Iterator[Raw | FileContent]:
    """Yield the parts of the tar in order.  Raises `ContentError` if `lines` are no tar-split."""
    for line in lines:
        kind, entry = _parse(line)
        if kind == _SEGMENT:
            yield Raw(_decode(entry.get("payload") or ""))
        elif (size := _size(entry)) > 0:
            yield FileContent(_name(entry), size)


def tar_size(lines: Iterable[bytes]) -> int:
    """Return the size of the whole tar in bytes, without decoding it: 20,000 files take about 50 ms.

    Raises `ContentError` as `read_tar_split`, but does not detect damage inside of base64 text.
    """
    total = 0
    for line in lines:
        if line.startswith(_SEGMENT_LINE):
            start = len(_SEGMENT_LINE)
            total += _decoded_size(line, start, line.find(b'"', start))
            continue
        kind, entry = _parse(line)
        if kind == _SEGMENT:
            text = str(entry.get("payload") or "").encode()
            total += _decoded_size(text, 0, len(text))
        else:
            total += _size(entry)
    return total


def _parse(line: bytes) -> tuple[int, dict[str, object]]:
    if len(line) > LONGEST_LINE:
        raise ContentError(f"a tar-split has a line of {len(line)} bytes")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ContentError("a tar-split has a line that is not JSON") from error
    kind = entry.get("type") if isinstance(entry, dict) else None
    if kind not in (_FILE, _SEGMENT):
        raise ContentError("a tar-split has a line of a kind unknown here")
    return kind, entry


def _size(entry: dict[str, object]) -> int:
    size = entry.get("size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ContentError("a tar-split has a size that is not a number of bytes")
    return size


def _name(entry: dict[str, object]) -> bytes:
    raw, name = entry.get("name_raw"), entry.get("name")
    if raw:
        return _decode(raw)
    if not isinstance(name, str) or not name:
        raise ContentError("a tar-split has a file without a name")
    try:
        return name.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise ContentError("a tar-split has a name that is not Unicode") from error


def _decode(text: object) -> bytes:
    if not isinstance(text, str):
        raise ContentError("a tar-split has a payload that is not text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ContentError("a tar-split has a payload that is not base64") from error


def _decoded_size(text: bytes, start: int, end: int) -> int:
    """Return how many bytes the base64 text from `start` to `end` encodes (RFC 4648, section 4)."""
    length = end - start
    if end < start or length % 4:
        raise ContentError("a tar-split has a payload that is not base64")
    padding = 0 if length == 0 else text.count(b"=", end - 2, end)
    return length // 4 * 3 - padding


def unzip_lines(compressed: bytes) -> Iterator[bytes]:
    """Yield the lines of a `tar-split.json.gz`.  Raises `ContentError` if it is no complete gzip file."""
    with gzip.GzipFile(fileobj=io.BytesIO(compressed)) as file:
        while True:
            try:
                line = file.readline(LONGEST_LINE + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ContentError("a tar-split is not a whole gzip file") from error
            if not line:
                return
            yield line


def path_of(name: bytes) -> bytes:
    """Return the relative path to which a file of this name in a tar was unpacked.

    Raises `ContentError` for a name that is empty, has `..` or a NUL.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if not parts or b".." in parts or b"\0" in name:
        raise ContentError(f"a layer has a file called {name[:100]!r}")
    return b"/".join(parts)
