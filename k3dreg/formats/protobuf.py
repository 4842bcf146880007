"""Protocol Buffers' wire format, as far as messages of strings, numbers, maps and other messages need it.

The encoding is in https://protobuf.dev/programming-guides/encoding/.  A message is the concatenation of its fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
# Bytes of the longest varint, which has 64 bits.
_LONGEST_VARINT = 10


def field(number: int, value: str | bytes) -> bytes:
    """Return the field `number` with a string or an encoded message.  An empty string is left out, as its default."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _LENGTH) + _varint(len(data)) + data if data or isinstance(value, bytes) else b""


def integer_field(number: int, value: int) -> bytes:
    """Return the field `number` with a number that is not negative; a bool counts as one."""
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def map_field(number: int, entries: Mapping[str, str]) -> bytes:
    """Return the field `number` with a map of strings."""
    return b"".join(field(number, field(1, key) + field(2, value)) for key, value in entries.items())


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Message:
    """A decoded message.  A field that is missing has its default: "", 0, or an empty message."""

    def __init__(self, data: bytes) -> None:
        """Raises `ValueError` if `data` is no message."""
        self._fields: dict[int, list[bytes | int]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def text(self, number: int) -> str:
        """Return a string.  Raises `ValueError` if it is not UTF-8."""
        values = self.texts(number)
        return values[-1] if values else ""

    def texts(self, number: int) -> list[str]:
        """Return a repeated string.  Raises `ValueError` if one is not UTF-8."""
        return [value.decode() for value in self._fields.get(number, ()) if isinstance(value, bytes)]

    def number(self, number: int) -> int:
        """Return an unsigned number."""
        values = [value for value in self._fields.get(number, ()) if isinstance(value, int)]
        return values[-1] if values else 0

    def messages(self, number: int) -> list[Message]:
        """Return a repeated message.  Raises `ValueError` if one is no message."""
        return [Message(value) for value in self._fields.get(number, ()) if isinstance(value, bytes)]

    def message(self, number: int) -> Message:
        """Return a message.  Raises `ValueError` if the field holds none."""
        values = self.messages(number)
        return values[-1] if values else Message(b"")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            length, at = _read_varint(data, at)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if at + length > len(data):
            raise ValueError("a field is cut off")
        if kind == _LENGTH:
            yield number, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at` and the position after it."""
    value = 0
    for count, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError("a number is cut off")
