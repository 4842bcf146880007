"""Makes the parts of a daemon, applies changed settings to them, and closes them."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort

from k3dreg import __version__
from k3dreg.attaching.addresses_for_nodes import Addresses
from k3dreg.attaching.cluster_watch import ClusterWatch
from k3dreg.clusters.node_images import images_on_nodes
from k3dreg.config.endpoints import ONLY_LOOPBACK, is_only_loopback, tls_ports
from k3dreg.config.settings import Config
from k3dreg.credentials.chain import make_chain
from k3dreg.daemon.closing import Closing
from k3dreg.daemon.engine_watch import make_monitor
from k3dreg.daemon.image_sources import make_files, make_sources, make_warming
from k3dreg.daemon.listeners import Listeners
from k3dreg.daemon.upstream_registries import make_upstream
from k3dreg.docker.client import EngineClient
from k3dreg.docker.endpoint import make_agent, make_pool
from k3dreg.images.content_map import CONTENT_TABLES, ContentMap
from k3dreg.linking.layer_linking import LayerLinking
from k3dreg.linking.linkers import make_linkers
from k3dreg.linking.linking_messages import AT_ONCE
from k3dreg.registry.advance_linking import AdvanceLinking
from k3dreg.registry.content_discovery import Discovery, EngineLists
from k3dreg.registry.engine_content import EngineContent
from k3dreg.registry.one_remote import OneRemote
from k3dreg.registry.own_name_discovery import EngineImageNames, learn_names
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.pull import Pull
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.pull_in_progress import PullInProgress
from k3dreg.registry.pulled_repositories import PulledRepositories
from k3dreg.registry.push import Uploads
from k3dreg.registry.pushed_lookup import PushedLookup
from k3dreg.registry.refresh import Refresh
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions
from k3dreg.registry.tag_records import TAG_TABLES, TagRecords
from k3dreg.registry.upload_sessions import MOST_SESSIONS
from k3dreg.reporting.logger import make_logger, set_level
from k3dreg.status.operations import Operations
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.blob_store import open_store_in
from k3dreg.store.collection import Collector
from k3dreg.store.database import DATABASE_FILE, Database
from k3dreg.store.identity import identity, public_name
from k3dreg.store.pushed import PushedContent
from k3dreg.store.pushed_tables import PUSHED_TABLES
from k3dreg.store.state_directory import StateDirectory
from k3dreg.store.upload_staging import Staging
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.name_resolution import make_resolve
from k3dreg.web.connections import connection_budget
from k3dreg.web.passwords import THREADS as PASSWORD_THREADS
from k3dreg.web.site import make_site

log = make_logger()


class App:
    """All parts of a daemon, opened in order and closed in the reverse order.

    Call `stop` at the end, also after a `start` that failed or was cancelled: each part is added to `_closing` when it
    is opened, so `stop` closes those that there are.
    """

    def __init__(self, config: Config, reactor: Any) -> None:
        """`reactor` is Twisted's, for time, threads and sockets."""
        self._config = config
        self._reactor = reactor
        self._closing = Closing()
        self._pool = make_pool(reactor)
        agent = make_agent(reactor, config.docker, pool=self._pool)
        self.engine = EngineClient(agent, reactor, description=str(config.docker))
        self.workers = Workers(reactor)

    async def start(self) -> None:
        """Open the state directory, make all parts, and listen.

        Raises `K3dregError`, `OSError` and `CannotListenError`.
        """
        config, closing = self._config, self._closing
        log.info("k3dreg {version}, state in {state}", version=__version__, state=config.state_dir)
        self.workers.start()
        closing.add(self.workers.stop)
        closing.add(self._pool.closeCachedConnections)
        closing.add(self.engine.shutdown)
        state = await self.workers.acquire(StateDirectory, StateDirectory.close, config.state_dir)
        closing.add(state.close)
        tables = (PUSHED_TABLES, CONTENT_TABLES, TAG_TABLES)
        database = await self.workers.acquire(
            Database, Database.close, config.state_dir / DATABASE_FILE, tables, state.reserve
        )
        closing.add(lambda: self.workers.run(database.close))
        pushed = PushedContent(database, self.workers, self._reactor)
        closing.add(pushed.close)
        self._store = store = await open_store_in(state, self.workers, config.cache_size, self._reactor, pushed)
        closing.add(store.close)
        self._names = names = OwnNames()
        content_map = ContentMap(database, self.workers)
        arrivals = Arrivals(store, self.workers)
        files = await make_files(config, self.engine, self.workers, arrivals, self._reactor, closing)
        closing.add(arrivals.shutdown)  # before the files are closed from which blobs arrive
        self._monitor = monitor = make_monitor(config, self.engine, files, store, pushed, self._reactor)
        closing.add(monitor.shutdown)
        image_names = EngineImageNames(self.engine, self.workers)
        self._permitted = permitted = PermittedRegistries(
            (), self.engine, image_names, make_resolve(self._reactor), remote=config.remote.only
        )
        tags = TagRecords(database, self.workers)
        resolver = Resolver(
            self.engine, self._reactor, names, monitor.observer, permitted.check, permitted.is_known, tags.pulled
        )
        closing.add(resolver.shutdown)
        made = make_sources(
            files, self.engine, store, arrivals, content_map, self.workers, self._reactor, closing, monitor.observer
        )
        lookups = self._own_workers(2, "credentials")
        aws = self._own_workers(4, "aws")
        credentials = make_chain(self._reactor, lookups, os.environ, config.remote, aws=aws)
        upstream = make_upstream(
            self.engine,
            made.sources[:1],
            store,
            arrivals,
            credentials,
            names,
            self._reactor,
            permitted.check,
            closing,
        )
        content = EngineContent(made.sources, store, content_map, self._reactor)
        for_pulls = PullCredentials(credentials)
        questions = TagQuestions(tags, upstream.digests, self.engine, for_pulls, names, self._reactor, permitted.check)
        self._refresh = Refresh(questions, resolver, for_pulls, self._reactor)
        closing.add(self._refresh.shutdown)
        in_progress = PullInProgress(
            self.engine, made.loose, resolver.is_pulling, for_pulls.registry_auth, self._reactor
        )
        closing.add(in_progress.shutdown)
        lookup = PushedLookup(pushed, store, names, content_map.knows)
        # Not abandoned at a stop: what is linked halfway is removed first.
        link_workers = Workers(self._reactor, AT_ONCE, name="k3dreg-link")
        link_workers.start()
        closing.add(link_workers.stop)
        owner = await self.workers.run(identity, config.state_dir)
        linkers = await make_linkers(self.engine, config.docker.socket, self.workers, self._reactor, owner)
        pulled = PulledRepositories(names)
        self._linking = LayerLinking(self.engine, linkers, link_workers, self._reactor, pulled.add, monitor.observer)
        closing.add(self._linking.shutdown)
        self._advance_linking = AdvanceLinking(self.engine, image_names, pulled, self._linking, self._reactor)
        closing.add(self._advance_linking.stop)
        self._pull = pull = Pull(
            lookup,
            names,
            OneRemote(config.remote.only, names, lookup.has_repository),
            resolver,
            for_pulls,
            in_progress,
            content,
            upstream.repair,
            upstream.fallback,
            linking=self._linking,
            refresh=self._refresh,
        )
        budget = connection_budget()
        self._uploads = Uploads(
            store,
            Staging(store),
            pushed,
            pull,
            names,
            self.workers,
            self._reactor,
            most_sessions=min(MOST_SESSIONS, budget),
        )
        closing.add(self._uploads.shutdown)
        self._collector = Collector(
            pushed, store, content_map.knows, self._reactor, partial(images_on_nodes, self.engine)
        )
        self._collector.start()
        closing.add(self._collector.stop)
        self._listeners = Listeners(self._own_workers(PASSWORD_THREADS, "passwords"))
        closing.add(self._listeners.shutdown)
        lists = EngineLists(image_names, self.workers, self._reactor)
        closing.add(lists.shutdown)
        self._operations = Operations(monitor, self._reactor, public_name(owner))
        site = make_site(
            pull,
            self._reactor,
            uploads=self._uploads,
            discovery=Discovery(pushed, names, lists),
            operations=self._operations,
            observer=monitor.observer,
            access=self._listeners.access,
            is_own_host=names.is_own_host,
            budget=budget,
        )
        self._warming = make_warming(self.engine, image_names, made.sources, store, monitor, self._reactor)
        closing.add(self._warming.stop)
        ports: list[int] = []
        trouble = ONLY_LOOPBACK if is_only_loopback(config.listen) else ""
        addresses = Addresses(self.engine, socket.gethostname(), ports, trouble)
        self._clusters = ClusterWatch(self.engine, addresses, lambda said: log.info("{said}", said=said), self._reactor)
        closing.add(self._clusters.stop)
        self.configure(config)
        await self._listeners.start()
        closing.add(site.connections.shutdown)
        closing.add(self._operations.events.shutdown)

        def opened(port: IListeningPort) -> None:
            closing.add(port.stopListening)
            site.connections.admit_at(port)

        listening = await self._listeners.listen(config.listen, site, names, self._reactor, opened)
        learning = Deferred.fromCoroutine(
            learn_names(names, self.engine, socket.gethostname(), listening, self._reactor)
        )
        learning.addErrback(lambda failure: failure.trap(CancelledError) and None)
        closing.add(learning.cancel)
        ports += [port for port in listening if port not in tls_ports(config.listen)]
        self._clusters.start()

    def configure(self, config: Config) -> None:
        """Apply all `reloadable` settings, at the start and after each reload.

        It does not wait and does not fail, as the values were checked when they were read.
        """
        set_level(config.log_level)
        self._store.set_limit(config.cache_size)
        self._names.tell(config.aliases)
        self._permitted.change(config.allow_registries)
        self._refresh.change(config.refresh)
        self._pull.enable_origin_fallback(config.origin_fallback)
        self._linking.enable(config.link_layers)
        self._advance_linking.enable(config.link_layers)
        self._collector.retain(config.retain)
        self._monitor.retain(config.retain)
        self._uploads.allow_deleting(config.deleting)
        self._uploads.allow_sparse(manifests=config.sparse, indexes=config.sparse or not config.whole_indexes)
        self._operations.show_page(config.status_page)
        self._warming.change(config.warm)
        self._clusters.change(config.attach)
        self._listeners.admit(config.htpasswd, anonymous_pull=config.anonymous_pull)

    async def stop(self) -> None:
        """Close all parts that were opened.  If closing one fails, that is logged, and the others are closed."""
        await self._closing.close()

    def _own_workers(self, threads: int, name: str) -> Workers:
        """Start worker threads for work that a server or client can make slow, for which blobs must not wait."""
        workers = Workers(self._reactor, threads, name=f"k3dreg-{name}", abandoning=True)
        workers.start()
        self._closing.add(workers.stop)
        return workers
