"""A pool of an HTTP client's idle connections."""

from __future__ import annotations

from typing import Any

from twisted.web.client import HTTPConnectionPool, _HTTP11ClientFactory


class _QuietFactory(_HTTP11ClientFactory):
    """Twisted writes two lines to the log for each connection, and has no public way to say no."""

    noisy = False


def quiet_pool(reactor: Any, *, persistent: bool = True) -> HTTPConnectionPool:
    """Return a pool that logs no connections; `closeCachedConnections` ends the idle ones."""
    pool = HTTPConnectionPool(reactor, persistent=persistent)
    pool._factory = _QuietFactory
    return pool
