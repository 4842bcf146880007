"""Parse the headers of a tar file and their pax records (POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar)."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import frozen

from k3dreg.oci.errors import ArchiveError

BLOCK = 512
ZEROS = bytes(BLOCK)

# Larger numbers are refused: Go's archive/tar, which Docker uses, has sizes of int64.
LARGEST_SIZE = 2**63 - 1


class EntryKind(enum.Enum):
    """The kind of an entry.  Only FILE and OTHER have content."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    DEVICE = "device"
    DIRECTORY = "directory"
    FIFO = "fifo"
    OTHER = "entry of an unknown kind"


_KINDS = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,  # before POSIX
    b"7": EntryKind.FILE,  # contiguous
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.DEVICE,
    b"4": EntryKind.DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}


@frozen
class Header:
    """The fields of a header block, before extended headers replace its name, link or size.  `size` is in bytes."""

    flag: bytes
    name: bytes
    link: bytes
    size: int
    mode: int

    def kind(self, name: bytes) -> EntryKind:
        """Return the kind of the entry, whose full name is `name`.

        POSIX treats unknown flags as files.  Here they are OTHER, because no caller needs such entries.
        """
        if self.flag == b"\0" and name.endswith(b"/"):  # a directory in the v7 format
            return EntryKind.DIRECTORY
        return _KINDS.get(self.flag, EntryKind.OTHER)


def parse_header(block: bytes) -> Header:
    """Return the header in a block of 512 bytes.  Raises `ArchiveError` if the block is no header."""
    if not _checksum_matches(block):
        raise ArchiveError(f"no tar header where one should be, but {block[:60]!r}")
    name = _text(block[0:100])
    # With GNU's magic ("ustar" and two blanks), other fields are in the place of POSIX's prefix.
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    return Header(block[156:157], name, _text(block[157:257]), _number(block[124:136]), _number(block[100:108]))


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax extended header, each "LENGTH KEY=VALUE\\n".  Raises `ArchiveError`."""
    return dict(_pax_records(data))


def pax_size(value: bytes) -> int:
    """Return the value of a pax `size` record in bytes.  Raises `ArchiveError`."""
    # 19 digits are enough for every int64.  Longer texts are refused before int(), which takes quadratic time.
    if not value.isdigit() or len(value) > 19 or int(value) > LARGEST_SIZE:
        raise ArchiveError(f"a pax header has the size {value[:60]!r}")
    return int(value)


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 10)
        digits = data[at:blank]
        if blank < 0 or not digits.isdigit():
            raise ArchiveError("a pax header's record has no length")
        end = at + int(digits)
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not blank < end <= len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
            raise ArchiveError("a pax header's record is not KEY=VALUE of the length it says")
        yield key, value
        at = end


def _checksum_matches(block: bytes) -> bool:
    """Return whether the checksum is the sum of all bytes, with those of the checksum itself counted as blanks."""
    try:
        said = _number(block[148:156])
    except ArchiveError:
        return False
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if said == unsigned:
        return True
    # Some old programs summed signed chars.
    return said == unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Parse octal digits, or GNU's base-256 if the first bit is set.  Raises `ArchiveError`."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    else:
        digits = field.partition(b"\0")[0].strip(b" ")
        if digits.strip(b"01234567"):
            raise ArchiveError(f"a tar header has the number {field!r}")
        value = int(digits or b"0", 8)
    if value > LARGEST_SIZE:
        raise ArchiveError(f"a tar header has the number {field!r}")
    return value
