"""JSON objects one after the other, as the Engine API streams its progress.

The engine separates them by CR LF, older ones glue them together, and a stream cuts them anywhere.
"""

from __future__ import annotations

import json
import re

from k3dreg.oci.errors import EngineError

# One object.  Progress has some hundred bytes; the largest seen are errors that quote a registry's HTML page.
# A peer that never closes its object must not fill the memory.
LARGEST_OBJECT = 1024 * 1024

_NOTABLE = re.compile(rb'["{}]')
_STRING_NOTABLE = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"


class JsonObjects:
    """A push parser: bytes go in, whole objects come out.  It looks at each byte once."""

    def __init__(self, limit: int = LARGEST_OBJECT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0  # bytes of the buffer that have been looked at
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[dict[str, object]]:
        """The objects that `data` completes, in order.

        Raises `EngineError` for bytes that are not JSON objects, or an object of more than the limit in bytes;
        the parser is of no use afterwards.
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
        """Say that no more bytes come.  Raises `EngineError` if the last object is not whole."""
        if self._buffer.strip(_BLANK):
            raise EngineError("the engine's progress ended in the middle of a message")

    def _next_stop(self) -> int | None:
        """Where the first whole object of the buffer ends, or None: more bytes are needed."""
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
                case b"\\":  # what follows is escaped; it may not be here yet
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
        """Drop blanks between objects; whether an object begins."""
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
        if not isinstance(value, dict):  # cannot be, as it begins with a brace; said for the type checker
            raise EngineError("the engine's progress is not made of objects")
        return value
