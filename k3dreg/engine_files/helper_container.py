"""What a container is made of that does something for k3dreg for a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import frozen

from k3dreg.streaming.content import IBlob


@frozen
class Helper:
    """`command` runs `pass_directories`, without its arguments; `container` and `host` are parts of the description of
    a container, and of its `HostConfig` (Engine API, "Create a container"); `files`, a tar, is to be put into it.
    """

    command: Sequence[str]
    container: Mapping[str, Any]
    host: Mapping[str, Any]
    files: IBlob | None = None


class Helpers(Protocol):
    """Knows such a container that shares k3dreg's network namespace."""

    def ready(self) -> AbstractAsyncContextManager[Helper]:
        """It can be made for as long as the `async with` lasts.

        Raises `EngineError`, and `FilesUnreachable` where there can be none.
        """
        ...
