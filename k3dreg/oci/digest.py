"""Digests, by which content is addressed (image-spec 1.1, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from attrs import frozen

from k3dreg.oci.errors import InvalidDigest

# Hexadecimal digits by algorithm.  Of the registered algorithms, sha512 is optional, and blake3 is left out because no
# client uses it yet.
_HEX = {"sha256": re.compile(r"[a-f0-9]{64}"), "sha512": re.compile(r"[a-f0-9]{128}")}

ALGORITHMS = frozenset(_HEX)
# The algorithm of a digest when the client names none; the specification calls it canonical.
DEFAULT_ALGORITHM = "sha256"


class Hasher(Protocol):
    """The methods of a `hashlib` object that k3dreg uses.  `update` releases the GIL for large buffers."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@frozen(order=True)
class Digest:
    """A digest, `algorithm:hex`.  Make it with `parse` or `of`, so that its parts are always safe in a file name."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return the digest that is written as `text`.

        Raises `InvalidDigest` for anything but sha256 or sha512 with the right number of lower-case hexadecimal digits.
        """
        algorithm, _, encoded = text.partition(":")
        pattern = _HEX.get(algorithm)
        if pattern is None or not pattern.fullmatch(encoded):
            raise InvalidDigest(f"not a sha256 or sha512 digest: {text[:150]!r}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of `data`.  In the reactor's thread call it for small documents only, as it blocks."""
        return cls(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).hexdigest())

    def hasher(self) -> Hasher:
        """Return a new hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    @property
    def short(self) -> str:
        """The first twelve hexadecimal digits, as Docker prints them, for logs."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
