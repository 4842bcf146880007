"""What a service manager is told, and when: sd_notify(3) over a real socket."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.daemon.sd_notify import ServiceManager


class Manager:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address)

    def heard(self) -> list[str]:
        """The messages since the last time."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return messages


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.path = str(Path("notify").resolve())
        self.manager = self.listen(self.path)

    def listen(self, address: str) -> Manager:
        manager = Manager(address)
        self.addCleanup(manager.socket.close)
        return manager

    def daemon(self, **environment: str) -> ServiceManager:
        return ServiceManager({"NOTIFY_SOCKET": self.path, **environment}, self.clock)


class ServiceManagerTests(Case):
    def test_it_hears_when_the_daemon_is_ready_and_when_it_ends(self) -> None:
        daemon = self.daemon()
        daemon.ready()
        daemon.stopping()
        self.assertEqual(self.manager.heard(), ["READY=1\nSTATUS=", "STOPPING=1"])

    def test_the_status_says_where_images_come_from_on_one_line(self) -> None:
        daemon = self.daemon()
        daemon.engine("images come from Docker 28")
        daemon.engine("no engine:\nno socket")
        self.assertEqual(self.manager.heard(), ["STATUS=images come from Docker 28", "STATUS=no engine: no socket"])

    def test_around_a_reload_it_hears_since_when_and_what_came_of_it(self) -> None:
        daemon = self.daemon()
        daemon.ready()
        daemon.engine("images come from Docker 28")
        self.manager.heard()
        before = time.monotonic()
        daemon.reloading()
        daemon.reloaded("there is no option 'x'")
        begin, end = self.manager.heard()
        state, _, moment = begin.partition("\nMONOTONIC_USEC=")
        self.assertEqual(state, "RELOADING=1")
        self.assertTrue(before - 0.001 <= int(moment) / 1e6 <= time.monotonic())
        self.assertEqual(
            end,
            "READY=1\nSTATUS=the settings were not changed: there is no option 'x'; images come from Docker 28",
        )
        daemon.reloading()
        daemon.reloaded("")
        self.assertEqual(self.manager.heard()[1], "READY=1\nSTATUS=images come from Docker 28")

    def test_a_daemon_that_does_not_listen_yet_is_not_ready_by_a_reload(self) -> None:
        daemon = self.daemon()
        daemon.reloading()
        daemon.reloaded("")
        self.assertEqual(self.manager.heard(), [])

    def test_a_name_in_the_abstract_namespace_is_one(self) -> None:
        name = f"k3dreg-test-{os.getpid()}"
        manager = self.listen(f"\0{name}")
        self.daemon(NOTIFY_SOCKET=f"@{name}").stopping()
        self.assertEqual(manager.heard(), ["STOPPING=1"])

    def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(self) -> None:
        for address in ("", self.path + "-gone", "vsock:2:1234"):
            daemon = self.daemon(NOTIFY_SOCKET=address, WATCHDOG_USEC="2000000")
            daemon.ready()
            daemon.engine("images come from Docker 28")
            self.clock.advance(1)
            daemon.stopping()
        self.assertEqual(self.manager.heard(), [])

    def test_a_manager_that_is_slow_hears_everything_in_order_and_nobody_waits_for_it(self) -> None:
        daemon = self.daemon()
        states = [f"state {number}" for number in range(2000)]
        for state in states:
            daemon.engine(state)
        heard = self.manager.heard()
        self.assertLess(len(heard), len(states))
        while self.clock.getDelayedCalls():
            self.clock.advance(0.1)
            heard += self.manager.heard()
        self.assertEqual(heard, [f"STATUS={state}" for state in states])


class WatchdogTests(Case):
    def test_it_hears_twice_in_the_time_that_it_waits_from_when_the_daemon_is_ready(self) -> None:
        daemon = self.daemon(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
        self.clock.advance(60)
        self.assertEqual(self.manager.heard(), [])
        daemon.ready()
        self.clock.pump([14.9, 0.2, 14.8, 0.2])
        self.assertEqual(self.manager.heard(), ["READY=1\nSTATUS=", *["WATCHDOG=1"] * 3])
        daemon.stopping()
        self.clock.advance(60)
        self.assertEqual(self.manager.heard(), ["STOPPING=1"])

    def test_a_manager_that_is_behind_is_not_told_again_and_again_but_hears_of_the_end(self) -> None:
        daemon = self.daemon(WATCHDOG_USEC="1000000")
        daemon.ready()
        self.clock.pump([0.1] * 12_000)  # more than any socket holds
        heard = self.manager.heard()
        self.clock.advance(0.1)
        # What its socket held, and one that waited.
        self.assertEqual(self.manager.heard(), ["WATCHDOG=1"])
        self.assertEqual(heard, ["READY=1\nSTATUS=", *["WATCHDOG=1"] * (len(heard) - 1)])
        self.clock.pump([0.1] * 12_000)
        daemon.stopping()
        self.manager.heard()
        self.clock.advance(0.1)
        self.assertEqual(self.manager.heard(), ["STOPPING=1"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_does_not_when_it_waits_for_another_process_or_not_at_all(self) -> None:
        for environment in (
            {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "0"},
            {},
        ):
            self.daemon(**environment).ready()
            self.clock.advance(60)
            self.assertEqual(self.manager.heard(), ["READY=1\nSTATUS="])
