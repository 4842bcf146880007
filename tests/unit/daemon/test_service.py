"""A daemon that stops leaves the process as it was, also when it had not started yet."""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from k3dreg.daemon.service import Daemon
from tests.fakes.daemon_options import options_without_engine


class StoppingTests(TestCase):
    def daemon(self) -> Any:
        return Daemon(options_without_engine(self.mktemp()), reactor)

    async def test_sighup_does_what_it_did_before(self) -> None:
        before = signal.getsignal(signal.SIGHUP)
        daemon = self.daemon()
        daemon.startService()
        await daemon._starting
        self.assertNotEqual(signal.getsignal(signal.SIGHUP), before)
        await daemon.stopService()
        self.assertEqual(signal.getsignal(signal.SIGHUP), before)

    async def test_a_start_under_way_is_given_up(self) -> None:
        daemon = self.daemon()
        daemon.startService()
        await daemon.stopService()
        await daemon._starting
        self.assertFalse(daemon.running)
