"""The daemon as a service of twistd: start, SIGHUP, stop.  The only module of the daemon that imports the reactor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from typing import Any

from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from k3dreg.config.options import Options
from k3dreg.daemon.app import App
from k3dreg.daemon.engine_watch import EngineWatch
from k3dreg.daemon.json_log import json_observer
from k3dreg.daemon.reload import Hangup, Reloader
from k3dreg.daemon.sd_notify import ServiceManager
from k3dreg.oci.errors import K3dregError
from k3dreg.reporting.logger import make_logger, set_level
from k3dreg.streaming.byte_stream import BATCH

log = make_logger()


class Daemon(MultiService):
    """The service that twistd starts and stops: the `App`, SIGHUP, and notices to the service manager.

    `reactor` is Twisted's, for time, threads and sockets.  If the start fails, it is stopped.
    """

    def __init__(self, options: Options, reactor: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._config = config = options.config
        self._reactor = reactor
        self._app = app = App(config, reactor)
        self._manager = manager = ServiceManager(os.environ, reactor)
        self._reloader = Reloader(options, app.workers, app.configure, began=manager.reloading, ended=manager.reloaded)
        self._hangup = Hangup(reactor, self._reload, reactor.stop)
        self._reload_wanted = False
        self._starting: Deferred[None] | None = None
        watch = EngineWatch(app.engine, str(config.docker), reactor, manager.engine)
        watch.setServiceParent(self)  # type: ignore[no-untyped-call]

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Join the application, and set its `ILogObserver`, by which twistd writes the log, if that is to be JSON."""
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
        await self._app.start()
        super().startService()  # type: ignore[no-untyped-call]
        self._manager.ready()
        if self._reload_wanted:
            self._reload()

    def _reload(self) -> None:
        """Read the settings again; if the daemon is starting, do so when it has started."""
        if self.running:
            reloaded = Deferred.fromCoroutine(self._reloader.reload())
            reloaded.addErrback(lambda failure: log.failure("settings could not be read again", failure=failure))
        self._reload_wanted = not self.running

    async def _stop(self) -> None:
        self._manager.stopping()
        if self._starting is not None:
            self._starting.cancel()
        await super().stopService()  # type: ignore[no-untyped-call]
        await self._app.stop()
        self._hangup.remove()

    def _give_up(self, failure: Failure) -> None:
        """Log why the start failed, and stop the process with status 1."""
        if failure.check(CancelledError):
            return
        if failure.check(K3dregError, OSError, CannotListenError):
            log.error("k3dreg cannot start: {error}", error=failure.getErrorMessage())
        else:
            log.failure("k3dreg cannot start", failure=failure)
        # twistd offers no exit status once the reactor runs.  After the shutdown all parts are closed.
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        self._reactor.stop()


def keep_memory_small() -> None:
    """Let all threads share one arena of glibc: a pull of 1.1 GB by twenty clients at once takes 79 MiB instead of 94.

    By default glibc has an arena for each thread, each with freed pieces of bodies.  With other C libraries, such as
    musl, this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; the latter two in bytes.  A piece of a body is
        # smaller than the threshold for a mapping of its own, and the freed memory that is kept suffices for the pieces
        # of eight pushes (`byte_stream`): to give memory back and get it again for each piece, with a page fault for
        # each of its pages, takes a quarter of the processor time of a push.
        for parameter, value in ((-8, 1), (-3, 4 * BATCH), (-1, 16 * BATCH)):
            mallopt(parameter, value)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit, for many connections and files at a time.

    The soft limit is 1,024 on most systems, for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the hard limit exceeds the kernel's own (fs.nr_open)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def makeService(options: Options) -> Daemon:
    """Return the service that `twistd k3dreg` runs."""
    from twisted.internet import reactor  # not at the top, where the import would choose a reactor before twistd does

    keep_memory_small()
    raise_descriptor_limit()
    set_level(options.config.log_level)
    if options.idle_sockets > 0:
        log.warn(
            "k3dreg does not use {count} of the sockets of the service manager's socket unit, because its settings say "
            "where to listen: stop the socket unit, or remove `listen` from the settings",
            count=options.idle_sockets,
        )
    # The AWS library, and the credential helpers that Docker's settings name, read the process's environment.
    os.environ.update(options.settings_environment)
    return Daemon(options, reactor)
