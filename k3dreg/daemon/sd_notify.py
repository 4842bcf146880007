"""Notices to the service manager: sd_notify(3) and sd_watchdog_enabled(3), which systemd and others understand.

Without `NOTIFY_SOCKET` in the environment nothing is sent.  The protocol is one datagram for each notice.  Libraries
for it block while the manager is slow, which the reactor's thread must not.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from k3dreg.reporting.logger import make_logger

log = make_logger()

# Seconds until a message is sent again that the manager's socket had no room for.
_AGAIN = 0.1


class ServiceManager:
    """Tells the service manager the state of the daemon, and at intervals that it is alive (watchdog)."""

    def __init__(self, environment: Mapping[str, str], clock: IReactorTime) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._waiting: list[bytes] = []
        self._complained = False
        self._engine = ""
        self._trouble = ""
        self._is_ready = False
        self._alive = LoopingCall(self._still_alive)
        self._alive.clock = clock
        # Seconds between two notices for the watchdog; 0 for a manager without one.
        self.watchdog = _watchdog_interval(environment) / 2 if self._address else 0.0

    def ready(self) -> None:
        """Report that the daemon listens, and begin the watchdog: the manager restarts a daemon whose reactor hangs."""
        self._is_ready = True
        self._tell("READY=1", self._status())
        if self.watchdog and not self._alive.running:
            self._alive.start(self.watchdog)

    def engine(self, state: str) -> None:
        """Report the state of the engine, one line for users."""
        self._engine = state
        self._tell(self._status())

    def reloading(self) -> None:
        """Report that settings are being read."""
        # Only a service that is ready can be reloading.
        if self._is_ready:
            moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._tell("RELOADING=1", f"MONOTONIC_USEC={moment}")

    def reloaded(self, trouble: str) -> None:
        """Report that the settings were applied; or, if `trouble` is not "", that they were not, and why."""
        self._trouble = f"the settings were not changed: {trouble}" if trouble else ""
        if self._is_ready:
            self._tell("READY=1", self._status())

    def stopping(self) -> None:
        """Report that the daemon stops, and end the watchdog."""
        if self._alive.running:
            self._alive.stop()
        self._waiting.clear()  # notices that wait are outdated
        self._tell("STOPPING=1")

    def _status(self) -> str:
        text = "; ".join(filter(None, (self._trouble, self._engine)))
        return "STATUS=" + " ".join(text.split())

    def _still_alive(self) -> None:
        if not self._waiting:  # a notice that waits will show that the daemon is alive
            self._tell("WATCHDOG=1")

    def _tell(self, *assignments: str) -> None:
        if self._address:
            self._waiting.append("\n".join(assignments).encode("utf-8"))
            # If other notices wait, `_send` is due already and sends this one after them.
            if len(self._waiting) == 1:
                self._send()

    def _send(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as out:
            while self._waiting:
                try:
                    out.sendto(self._waiting[0], self._address)
                except BlockingIOError:
                    self._clock.callLater(_AGAIN, self._send)
                    return
                except OSError as error:
                    if not self._complained:
                        log.warn("NOTIFY_SOCKET cannot be written to: {error}", error=error)
                    self._complained = True
                self._waiting.pop(0)


def _address(name: str) -> bytes:
    """Return a socket's address for the kernel, b"" for none; `@name` is in the abstract namespace (unix(7))."""
    if name.startswith("/"):
        return os.fsencode(name)
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    if name:
        log.warn(
            "NOTIFY_SOCKET={name} is neither an absolute path nor an abstract socket (@name): systemd gets no notices",
            name=name,
        )
    return b""


def _watchdog_interval(environment: Mapping[str, str]) -> float:
    """Return the seconds within which the manager expects a notice from this process; 0 for a manager that does not."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6
