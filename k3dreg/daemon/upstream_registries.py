"""Makes the parts that ask images' own registries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from k3dreg.daemon.closing import Closing
from k3dreg.docker.client import EngineClient
from k3dreg.images.repair import Repair
from k3dreg.images.source import IImageSource, IRepair
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.use_cases import IFallback
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.quiet_pool import quiet_pool
from k3dreg.upstream.origin import ICredentialSource, ITagDigests, MayAsk
from k3dreg.upstream.origin_fallback import OriginFallback
from k3dreg.upstream.registry_access import RegistryAccess
from k3dreg.upstream.registry_client import RegistryClient
from k3dreg.upstream.registry_requests import Requests, make_origin_agent


@frozen
class UpstreamRegistries:
    """The parts that ask images' own registries.

    `repair` restores blobs of images that Docker has lost, and `fallback` gives content that Docker cannot.  `digests`
    says what tags mean there.
    """

    repair: IRepair
    fallback: IFallback
    digests: ITagDigests


def make_upstream(
    engine: EngineClient,
    probes: Sequence[IImageSource],
    store: IBlobStore,
    arrivals: Arrivals,
    credentials: ICredentialSource,
    names: OwnNames,
    reactor: Any,
    may_ask: MayAsk,
    closing: Closing,
) -> UpstreamRegistries:
    """Return the parts that ask images' own registries.  `closing` closes them.

    `probes` are the sources that can tell of a single blob whether the engine holds it, as the content store's can.
    `reactor` is for time, connections and name lookups.
    """
    pool = quiet_pool(reactor)
    closing.add(pool.closeCachedConnections)
    agent = make_origin_agent(reactor, pool=pool)
    origin = RegistryClient(agent, store, arrivals, reactor)
    repair = Repair(engine, origin, credentials, probes, store, reactor, may_ask)
    closing.add(repair.shutdown)
    fallback = OriginFallback(origin, credentials, reactor, names.is_own, may_ask)
    closing.add(fallback.shutdown)
    return UpstreamRegistries(repair, fallback, RegistryAccess(Requests(agent, reactor), reactor))
