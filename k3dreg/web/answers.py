"""Answers as values: what a handler returns before any of it is written to the connection."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from attrs import frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.media_types import OCTET_STREAM
from k3dreg.oci.ranges import ByteRange, if_none_match_holds, if_range_holds, parse_ranges
from k3dreg.streaming.content import IBlob, ServedManifest

Headers = tuple[tuple[str, str], ...]

# distribution-spec 1.1, "Legacy Docker support HTTP headers".
API_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")


@frozen
class Part:
    """The bytes of a blob from `start` up to, not including, `stop`; `head` is sent first."""

    blob: IBlob
    start: int
    stop: int
    head: bytes = b""


@frozen
class Conditions:
    """The headers of a request that decide which part of the content is sent (RFC 9110, 13 and 14)."""

    if_none_match: str | None = None
    range: str | None = None
    if_range: str | None = None


@frozen
class Answer:
    """A whole response.

    `length` is the value of `Content-Length`, None for a status without content (204, 304).  The body is `parts` and
    then `body`; an answer to HEAD has neither.  `reason` is for the log: why the request failed.  `refusal` is the
    class name of the error that the answer reports, "" for none.
    """

    status: int
    headers: Headers
    length: int | None
    body: bytes = b""
    parts: tuple[Part, ...] = ()
    reason: str = ""
    refusal: str = ""


def text_answer(body: bytes, media_type: str) -> Answer:
    """Return a 200 answer whose body is `body`."""
    return Answer(200, (("Content-Type", media_type),), len(body), body)


def plain_refusal(said: bytes) -> bytes:
    """Return the bytes of a 400 for input that is not HTTP; the caller then closes the connection."""
    head = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    return head % len(said) + said


def manifest_headers(descriptor: Descriptor) -> Headers:
    """Return the headers of a manifest (distribution-spec 1.1, "Pulling manifests").

    A node takes the media type, digest and size from the answer to HEAD, without requesting the bytes.
    """
    return (("Content-Type", descriptor.media_type), *_identity(descriptor.digest))


async def manifest_answer(manifest: ServedManifest, with_body: bool, conditions: Conditions) -> Answer:
    """Return the answer to GET (`with_body`) or HEAD of a manifest.  Raises what `ServedManifest.open` raises."""
    descriptor = manifest.descriptor
    if not if_none_match_holds(conditions.if_none_match, _etag(descriptor.digest)):
        return _not_modified(descriptor.digest)
    parts = (Part(await manifest.open(), 0, descriptor.size),) if with_body else ()
    return Answer(200, manifest_headers(descriptor), descriptor.size, parts=parts)


def blob_answer(blob: IBlob, with_body: bool, conditions: Conditions) -> Answer:
    """Return the answer to a request of a blob, or of ranges of it (distribution-spec 1.1, "Pulling blobs").

    Ranges are for GET only (RFC 9110, 14.2).  Raises `RangeNotSatisfiable`.
    """
    etag = _etag(blob.digest)
    if not if_none_match_holds(conditions.if_none_match, etag):
        return _not_modified(blob.digest)
    ranges: Sequence[ByteRange] = ()
    if with_body and if_range_holds(conditions.if_range, etag):
        ranges = parse_ranges(conditions.range, blob.size)
    headers: Headers = (*_identity(blob.digest), ("Accept-Ranges", "bytes"))
    if len(ranges) > 1:
        return _multipart(blob, ranges, headers)
    headers = (("Content-Type", OCTET_STREAM), *headers)
    if not ranges:
        return Answer(200, headers, blob.size, parts=(Part(blob, 0, blob.size),) if with_body else ())
    [wanted] = ranges
    headers = (*headers, ("Content-Range", wanted.content_range(blob.size)))
    return Answer(206, headers, wanted.size, parts=(Part(blob, wanted.start, wanted.stop),))


def _multipart(blob: IBlob, ranges: Sequence[ByteRange], headers: Headers) -> Answer:
    """Return several ranges of a blob (RFC 9110, 14.6; RFC 2046, 5.1).

    The boundary is random, so that the blob cannot contain it.
    """
    boundary = secrets.token_hex(16)
    delimiter = f"\r\n--{boundary}"
    media_type = f"\r\nContent-Type: {OCTET_STREAM}"
    parts = [
        Part(
            blob,
            each.start,
            each.stop,
            f"{delimiter}{media_type}\r\nContent-Range: {each.content_range(blob.size)}\r\n\r\n".encode("ascii"),
        )
        for each in ranges
    ]
    end = f"{delimiter}--\r\n".encode("ascii")
    length = sum(len(part.head) + part.stop - part.start for part in parts) + len(end)
    content_type = ("Content-Type", f"multipart/byteranges; boundary={boundary}")
    return Answer(206, (content_type, *headers), length, end, tuple(parts))


def _etag(digest: Digest) -> str:
    return f'"{digest}"'


def _identity(digest: Digest) -> Headers:
    return (("Docker-Content-Digest", str(digest)), ("ETag", _etag(digest)))


def _not_modified(digest: Digest) -> Answer:
    return Answer(304, _identity(digest), None)
