"""Digests: the names of content (image-spec 1.1, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from attrs import frozen

from k3dreg.oci.errors import InvalidDigest

# The registered algorithms.  sha512 is optional in the spec, blake3 is newer than any client seen.
_HEX = {"sha256": re.compile(r"[a-f0-9]{64}"), "sha512": re.compile(r"[a-f0-9]{128}")}

ALGORITHMS = frozenset(_HEX)
# "Canonical": what a digest is of when nobody says.
DEFAULT_ALGORITHM = "sha256"


class Hasher(Protocol):
    """What k3dreg needs of a `hashlib` object.  `update` of large buffers releases the GIL."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@frozen(order=True)
class Digest:
    """`algorithm:hex`.  Only `parse` and `of` make one, so a Digest is always safe as a file name."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest that `text` spells.

        Raises `InvalidDigest` for anything but sha256 or sha512 with the right number of
        lower-case hexadecimal digits.
        """
        algorithm, _, encoded = text.partition(":")
        pattern = _HEX.get(algorithm)
        if pattern is None or not pattern.fullmatch(encoded):
            raise InvalidDigest(f"not a sha256 or sha512 digest: {text[:150]!r}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of `data`.  For small documents only: it hashes where it is called."""
        return cls(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    @property
    def short(self) -> str:
        """Twelve digits, as Docker prints them, for logs."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
