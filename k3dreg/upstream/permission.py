"""The check that callers make before they ask a registry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

# Takes a registry's host and raises `RegistryNotAllowed`: see `PermittedRegistries.check`.
MayAsk = Callable[[str], Awaitable[None]]


async def every_registry(registry: str) -> None:
    """Let every registry be asked."""
