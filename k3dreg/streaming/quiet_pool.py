"""The connection pool of an HTTP client, without Twisted's log lines."""

from __future__ import annotations

from typing import Any

from twisted.web.client import HTTPConnectionPool, _HTTP11ClientFactory


class _QuietFactory(_HTTP11ClientFactory):
    """Twisted logs two lines for each connection and has no public way to turn that off."""

    noisy = False


def quiet_pool(reactor: Any, *, persistent: bool = True) -> HTTPConnectionPool:
    """Return a pool that does not log its connections.  The caller closes idle ones by `closeCachedConnections`."""
    pool = HTTPConnectionPool(reactor, persistent=persistent)
    pool._factory = _QuietFactory
    return pool
