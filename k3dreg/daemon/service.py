"""Put the packages together and run them.  The only module that imports the reactor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from k3dreg import __version__
from k3dreg.config.options import Options
from k3dreg.config.settings import Config
from k3dreg.credentials.chain import make_chain
from k3dreg.daemon.engine_watch import EngineWatch, make_monitor
from k3dreg.daemon.image_sources import make_files, make_sources, make_warming
from k3dreg.daemon.json_log import json_observer
from k3dreg.daemon.listeners import Listeners
from k3dreg.daemon.reload import Hangup, Reloader
from k3dreg.daemon.sd_notify import ServiceManager
from k3dreg.daemon.upstream_registries import make_upstream
from k3dreg.docker.client import Engine
from k3dreg.docker.endpoint import make_agent, make_pool
from k3dreg.images.catalogue import open_catalogue
from k3dreg.oci.errors import K3dregError
from k3dreg.registry.content_discovery import Discovery, EngineLists
from k3dreg.registry.deadline import WithDeadline
from k3dreg.registry.engine_registry import EngineRegistry
from k3dreg.registry.one_remote import restricted
from k3dreg.registry.own_name_discovery import EngineImageNames, learn_names
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.pull_in_progress import PullInProgress
from k3dreg.registry.push import Uploads
from k3dreg.registry.pushed_first import PushedFirst
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.upload_sessions import MOST_SESSIONS
from k3dreg.reporting.logger import make_logger, set_level
from k3dreg.status.operations import Operations
from k3dreg.store.blob_store import open_store_in
from k3dreg.store.collection import Collector
from k3dreg.store.pushed import open_pushed
from k3dreg.store.state_directory import StateDirectory
from k3dreg.store.upload_staging import Staging
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.name_resolution import make_resolve
from k3dreg.web.connections import connection_budget
from k3dreg.web.passwords import THREADS as PASSWORD_THREADS
from k3dreg.web.site import make_site

log = make_logger()


class Daemon(MultiService):
    """Everything, started in order and stopped in the reverse of it.

    `reactor` is Twisted's: it is asked for time, threads, sockets and, when the start fails, to stop.
    """

    def __init__(self, options: Options, reactor: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._config = config = options.config
        self._reactor = reactor
        self._workers = Workers(reactor)
        self._manager = manager = ServiceManager(os.environ, reactor)
        self._reloader = Reloader(options, self._workers, began=manager.reloading, ended=manager.reloaded)
        self._hangup = Hangup(reactor, self._reload, reactor.stop)
        self._reload_wanted = False
        self._pool = make_pool(reactor)
        agent = make_agent(reactor, config.docker, pool=self._pool)
        self._engine = Engine(agent, reactor, description=str(config.docker))
        self._closing: list[Callable[[], Awaitable[object] | None]] = []
        self._starting: Deferred[None] | None = None
        watch = EngineWatch(self._engine, str(config.docker), reactor, manager.engine)
        watch.setServiceParent(self)  # type: ignore[no-untyped-call]

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Also tells twistd, which looks at the application for it, how the log is written."""
        if self._config.log_format == "json" and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, json_observer())  # type: ignore[no-untyped-call]
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        self._hangup.install()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._give_up)

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        config = self._config
        log.info("k3dreg {version}, state in {state}", version=__version__, state=config.state_dir)
        self._workers.start()
        self._closing.append(self._workers.stop)
        self._closing.append(self._pool.closeCachedConnections)
        self._closing.append(self._engine.shutdown)
        state = await self._workers.acquire(StateDirectory, StateDirectory.close, config.state_dir)
        self._closing.append(state.close)
        # Before the store, which must not evict what was pushed.
        pushed = await open_pushed(config.state_dir, self._workers, self._reactor, state.reserve)
        self._closing.append(pushed.close)
        store = await open_store_in(
            state,
            self._workers,
            config.cache_size,
            self._reactor,
            is_pinned=pushed.keeps,
            pushed_sizes=pushed.sizes_at_start,
        )
        self._closing.append(store.close)
        names = OwnNames(config.aliases)
        catalogue = await open_catalogue(config.state_dir, self._workers)
        files = await make_files(config, self._engine, self._workers, self._reactor)
        self._closing += files.closing
        monitor = make_monitor(config, self._engine, files, store, pushed, self._reactor)
        image_names = EngineImageNames(self._engine, self._workers)
        permitted = PermittedRegistries(
            config.allow_registries,
            self._engine,
            image_names,
            make_resolve(self._reactor),
            remote=config.remote.only,
        )
        resolver = Resolver(self._engine, self._reactor, names, monitor.observer, permitted.check, permitted.is_known)
        self._closing.append(resolver.shutdown)
        made = make_sources(files, self._engine, store, catalogue, self._workers, self._reactor, monitor.observer)
        self._closing += made.closing
        lookups = self._own_workers(2, "credentials")
        aws = self._own_workers(4, "aws")
        credentials = make_chain(self._reactor, lookups, os.environ, config.remote, aws=aws)
        upstream = make_upstream(
            self._engine, made.sources[:1], store, credentials, names, self._workers, self._reactor, permitted.check
        )
        self._closing += upstream.closing
        behind = EngineRegistry(resolver, made.sources, store, catalogue, credentials, upstream.repair, self._reactor)
        ahead = PullInProgress(behind, self._engine, made.loose, resolver.is_pulling, behind.pull_auth, self._reactor)
        self._closing.append(ahead.shutdown)
        falling_back = upstream.behind(ahead, config.origin_fallback)
        allowed = restricted(falling_back, config.remote, names, pushed)
        registry = PushedFirst(allowed, pushed, store, names, behind.knows)
        budget = connection_budget()
        uploads = Uploads(
            store,
            Staging(store),
            pushed,
            registry,
            names,
            self._workers,
            self._reactor,
            deleting=config.deleting,
            most_sessions=min(MOST_SESSIONS, budget),
        )
        self._closing.append(uploads.shutdown)
        collector = Collector(pushed, store, behind.knows, self._reactor)
        collector.start()
        self._closing.append(collector.stop)
        door = Listeners(config, self._own_workers(PASSWORD_THREADS, "passwords"))
        self._closing.append(door.shutdown)
        await door.start()
        lists = EngineLists(image_names, self._workers, self._reactor)
        self._closing.append(lists.shutdown)
        discovery = Discovery(pushed, names, lists)
        operations = Operations(monitor, self._reactor, status_page=config.status_page)
        site = make_site(
            WithDeadline(registry, self._reactor),
            self._reactor,
            uploads=uploads,
            discovery=discovery,
            operations=operations,
            observer=monitor.observer,
            access=door.access,
            is_own_host=names.is_own_host,
            budget=budget,
        )
        warming = make_warming(config, self._engine, image_names, made.sources, store, monitor, self._reactor)

        def use(new: Config) -> None:
            set_level(new.log_level)
            store.set_limit(new.cache_size)
            names.tell(new.aliases)
            permitted.change(new.allow_registries)
            uploads.deleting = new.deleting
            falling_back.wanted = new.origin_fallback
            operations.has_page = new.status_page
            warming.change(new.warm)

        self._reloader.on_change(
            use,
            *("log_level", "cache_size", "aliases", "deleting", "origin_fallback", "status_page", "warm"),
            "allow_registries",
        )
        self._reloader.on_change(door.use, "htpasswd", "anonymous_pull")
        self._closing.append(site.connections.shutdown)
        self._closing.append(operations.events.shutdown)

        def opened(port: IListeningPort) -> None:
            self._closing.append(port.stopListening)
            site.connections.admit_at(port)

        ports = await door.listen(config.listen, site, names, self._reactor, opened)
        learning = Deferred.fromCoroutine(learn_names(names, self._engine, socket.gethostname(), ports, self._reactor))
        learning.addErrback(lambda failure: failure.trap(CancelledError) and None)
        self._closing.append(learning.cancel)
        warming.start()
        self._closing.append(warming.stop)
        super().startService()  # type: ignore[no-untyped-call]
        self._manager.ready()
        if self._reload_wanted:
            self._reload()

    def _own_workers(self, threads: int, name: str) -> Workers:
        """Start threads for work that others can make slow: blobs and pushes must not wait for it."""
        workers = Workers(self._reactor, threads, name=f"k3dreg-{name}", abandoning=True)
        workers.start()
        self._closing.append(workers.stop)
        return workers

    def _reload(self) -> None:
        """Read the settings again; during the start, at its end."""
        if self.running:
            reloaded = Deferred.fromCoroutine(self._reloader.reload())
            reloaded.addErrback(lambda failure: log.failure("settings could not be read again", failure=failure))
        self._reload_wanted = not self.running

    async def _stop(self) -> None:
        self._manager.stopping()
        if self._starting is not None:
            self._starting.cancel()
        await super().stopService()  # type: ignore[no-untyped-call]
        while self._closing:
            close = self._closing.pop()
            try:
                closed = close()
                if closed is not None:
                    await closed
            except Exception:  # noqa: BLE001  (what was opened before it is closed all the same)
                log.failure("{what} failed while k3dreg stopped", what=getattr(close, "__qualname__", repr(close)))
        self._hangup.remove()

    def _give_up(self, failure: Failure) -> None:
        """The start failed: say why, stop, and make the process end with status 1."""
        if failure.check(CancelledError):
            return
        if failure.check(K3dregError, OSError, CannotListenError):
            log.error("k3dreg cannot start: {error}", error=failure.getErrorMessage())
        else:
            log.failure("k3dreg cannot start", failure=failure)
        # twistd has no way to say "with status 1" once the reactor runs; everything is closed by this time.
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        self._reactor.stop()


def keep_memory_small() -> None:
    """Tell glibc to give memory back: 94 MiB became 79 in a pull of 1.1 GB by twenty clients at once.

    Its default is an arena for each thread, and to keep what was freed of the pieces that are sent.  Elsewhere (musl)
    there is nothing to tell.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; the latter two in bytes.  Above the size of the
        # pieces that bodies come in: a mapping for each of those costs half as much again as all the rest of a push.
        for parameter, value in ((-8, 1), (-3, 1024 * 1024), (-1, 1024 * 1024)):
            mallopt(parameter, value)


def raise_descriptor_limit() -> None:
    """Raise the limit of open files to what this process may have: each connection and each file that is sent is one.

    The soft limit is 1,024 on most systems, for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # more than the kernel's own limit (fs.nr_open)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def makeService(options: Options) -> Daemon:
    """What `twistd k3dreg` runs."""
    from twisted.internet import reactor  # here and nowhere else, so that importing chooses no reactor

    keep_memory_small()
    raise_descriptor_limit()
    set_level(options.config.log_level)
    if options.idle_sockets > 0:
        log.warn(
            "k3dreg does not use {count} of the sockets of the service manager's socket unit, because its settings say "
            "where to listen: stop the socket unit, or remove `listen` from the settings",
            count=options.idle_sockets,
        )
    # For what reads the process's own: the AWS library, and the helpers that Docker's settings name.
    os.environ.update(options.settings_environment)
    return Daemon(options, reactor)
