"""Those who ask the registries that images come from, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import frozen

from k3dreg.engine.client import Engine
from k3dreg.falling_back import FallingBack
from k3dreg.interfaces import IBlobStore, ICredentialSource, IFallback, IImageSource, IRegistry, IRepair
from k3dreg.interfaces.asking import MayAsk
from k3dreg.names import OwnNames
from k3dreg.origin.client import Origin
from k3dreg.origin.fallback import OriginFallback
from k3dreg.origin.requests import make_origin_agent, make_origin_pool
from k3dreg.sources.repair import Repair
from k3dreg.streaming.workers import Workers


@frozen
class Upstream:
    """`repair` mends images of which Docker lost blobs; `closing` is what to call, last first, to end it all."""

    repair: IRepair
    fallback: IFallback
    closing: tuple[Callable[[], Awaitable[object] | None], ...]

    def behind(self, docker: IRegistry, wanted: bool) -> FallingBack:
        """`docker` with the registries behind it, for when that is wanted (`--origin-fallback`)."""
        return FallingBack(docker, self.fallback, wanted=wanted)


def make_upstream(
    engine: Engine,
    probes: Sequence[IImageSource],
    store: IBlobStore,
    credentials: ICredentialSource,
    names: OwnNames,
    workers: Workers,
    reactor: Any,
    may_ask: MayAsk,
) -> Upstream:
    """`probes` are sources that know of single blobs whether the engine holds them: the content store's.

    `reactor` connects, resolves names and tells the time.
    """
    pool = make_origin_pool(reactor)
    origin = Origin(make_origin_agent(reactor, pool=pool), store, workers, reactor)
    repair = Repair(engine, engine, origin, credentials, probes, store, reactor, may_ask)
    fallback = OriginFallback(origin, credentials, reactor, names.is_own, may_ask)
    return Upstream(
        repair, fallback, (pool.closeCachedConnections, origin.shutdown, repair.shutdown, fallback.shutdown)
    )
