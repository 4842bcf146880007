"""Reads the settings again while the daemon runs (SIGHUP), and applies those that are `reloadable`.

Other changed settings count from the next start on.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType

from attrs import evolve
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python import usage

from k3dreg.config.options import Options
from k3dreg.config.settings import SETTINGS, Config
from k3dreg.oci.errors import K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.workers import Workers

log = make_logger()


class Reloader:
    """Reads the settings again, and applies the reloadable ones that have changed."""

    def __init__(
        self,
        options: Options,
        workers: Workers,
        apply: Callable[[Config], object],
        *,
        began: Callable[[], object] = lambda: None,
        ended: Callable[[str], object] = lambda trouble: None,
    ) -> None:
        """`options` are those that the daemon was started with.

        `apply` is called in the reactor's thread when a reloadable setting has changed.  Settings that are not
        reloadable have the values of the start in its argument.  It must neither wait nor raise; the values were
        checked when they were read.

        `began` is called before each reading, and `ended` after it, with what is wrong, or "".
        """
        self._options = options
        self._workers = workers
        self._apply = apply
        self._began = began
        self._ended = ended
        self._config = options.config
        self._reading = False
        self._once_more = False

    async def reload(self) -> None:
        """Read the settings and apply those that have changed.  A call during a reading makes another one follow.

        If a setting is wrong, none is changed, and the log says what is wrong.
        """
        self._once_more = True
        if self._reading:
            return
        self._reading = True
        try:
            while self._once_more:
                self._once_more = False
                self._began()
                trouble = "settings could not be read again"
                try:
                    trouble = await self._reload()
                finally:
                    self._ended(trouble)
        finally:
            self._reading = False

    async def _reload(self) -> str:
        """Read and apply the settings; return what is wrong, or ""."""
        try:
            options = await self._workers.run(self._options.read_again)
        except (usage.UsageError, K3dregError) as error:
            log.error("the settings were not changed: {error}", error=error)
            return str(error)
        new = options.config
        changed = {name for name in SETTINGS if getattr(new, name) != getattr(self._config, name)}
        taken = {name for name in changed if SETTINGS[name].reloadable}
        # The other changed settings keep the value of the start, and each reload warns of them until the restart.
        self._config = evolve(self._config, **{name: getattr(new, name) for name in taken})
        log.info("settings read again: {what}", what=f"changed {_listed(taken)}" if taken else "nothing has changed")
        if taken:
            self._apply(self._config)
        environments = [_of_others(each.settings_environment) for each in (options, self._options)]
        left = _listed(changed - taken, *["environment"] * (environments[0] != environments[1]))
        if left:
            log.warn("restart k3dreg to apply these changed settings: {left}", left=left)
        return ""


def _of_others(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that are not k3dreg's own settings, which are compared as fields of `Config`."""
    return {name: value for name, value in environment.items() if not name.startswith(("K3DREG_", "REGISTRY_"))}


def _listed(fields: set[str], *others: str) -> str:
    """Return the names of settings, as users write them, and `others`."""
    return ", ".join(sorted([*(SETTINGS[field].name for field in fields), *others]))


class Hangup:
    """Handles SIGHUP: reloads the settings, or ends the process if its terminal was closed.

    The reactor installs no handler for this signal, so `install` may be called before or after it starts.
    """

    def __init__(self, reactor: IReactorFromThreads, reload: Callable[[], object], end: Callable[[], object]) -> None:
        """`reload` and `end` are called in the reactor's thread."""
        self._reactor = reactor
        self._reload = reload
        self._end = end
        self._before: Callable[[int, FrameType | None], object] | int | None = None
        self._from_terminal = False

    def install(self) -> None:
        """Handle SIGHUP from now on.  Call it in the main thread, as `signal.signal` requires."""
        self._before = signal.signal(signal.SIGHUP, self._signalled)
        # Restart system calls that the signal interrupts in other threads and in C libraries, instead of failing them.
        signal.siginterrupt(signal.SIGHUP, False)
        # nohup(1) sets the signal to be ignored: then the end of the terminal must not end the process.
        self._from_terminal = self._before != signal.SIG_IGN and _has_terminal()

    def remove(self) -> None:
        """Restore the handler that there was before `install`."""
        if self._before is not None:
            signal.signal(signal.SIGHUP, self._before)
            self._before = None

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # A signal handler runs between any two instructions of the reactor, so it only schedules `_act`.
        self._reactor.callFromThread(self._act)

    def _act(self) -> None:
        # When a terminal is closed, the kernel detaches it from the process before it sends the signal.
        if self._from_terminal and not _has_terminal():
            self._end()
        else:
            self._reload()


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOENT, errno.EIO)
    return True
