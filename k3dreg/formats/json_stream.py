"""Parse a stream of JSON objects, in which the Engine API sends its progress.

The engine separates the objects by CR LF, and older engines do not separate them.  They arrive in pieces of any size.
"""

from __future__ import annotations

import json
import re

from k3dreg.oci.errors import EngineError

# Bytes of one object, so that an object without an end does not fill the memory.  Progress has some hundred bytes; the
# largest objects seen are errors that quote a registry's HTML page.
LARGEST_OBJECT = 1024 * 1024

_NOTABLE = re.compile(rb'["{}]')
_STRING_NOTABLE = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"


class JsonObjects:
    """A push parser: bytes go in, complete objects come out.  It searches each byte once for the end of an object."""

    def __init__(self, limit: int = LARGEST_OBJECT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0  # bytes of the buffer that have been searched
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[dict[str, object]]:
        """Return the objects that `data` completes, in order.

        Raises `EngineError` for bytes that are not JSON objects, and for an object of more than `limit` bytes.  The
        caller must not use the parser afterwards.
        """
        self._buffer += data
        found: list[dict[str, object]] = []
        while (stop := self._next_stop()) is not None:
            found.append(self._parse(bytes(self._buffer[:stop])))
            del self._buffer[:stop]
            self._seen = 0
        if len(self._buffer) > self._limit:
            raise EngineError("the engine's progress holds a message that does not end")
        return found

    def close(self) -> None:
        """Raise `EngineError` if the stream ended within an object."""
        if self._buffer.strip(_BLANK):
            raise EngineError("the engine's progress ended in the middle of a message")

    def _next_stop(self) -> int | None:
        """Return the offset at which the first object in the buffer ends; None if more bytes are needed."""
        if not self._depth and not self._begins():
            return None
        while True:
            if self._in_string:
                notable = _STRING_NOTABLE.search(self._buffer, self._seen)
            else:
                notable = _NOTABLE.search(self._buffer, self._seen)
            if notable is None:
                self._seen = len(self._buffer)
                return None
            match notable.group():
                case b"\\":  # the next byte is escaped; it may not have arrived
                    if notable.end() == len(self._buffer):
                        self._seen = notable.start()
                        return None
                    self._seen = notable.end() + 1
                    continue
                case b'"':
                    self._in_string = not self._in_string
                case b"{":
                    self._depth += 1
                case _:
                    self._depth -= 1
            self._seen = notable.end()
            if not self._depth:
                return self._seen

    def _begins(self) -> bool:
        """Drop blanks between objects; return whether an object begins."""
        blanks = len(self._buffer) - len(self._buffer.lstrip(_BLANK))
        del self._buffer[:blanks]
        if self._buffer and not self._buffer.startswith(b"{"):
            raise EngineError("the engine's progress is not JSON")
        return bool(self._buffer)

    def _parse(self, text: bytes) -> dict[str, object]:
        if len(text) > self._limit:
            raise EngineError("the engine's progress holds a message of more than the limit")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EngineError("the engine's progress is not JSON") from error
        if not isinstance(value, dict):  # impossible, because it begins with a brace; for the type checker
            raise EngineError("the engine's progress is not made of objects")
        return value
