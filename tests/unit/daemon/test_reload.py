"""Settings are read again while the daemon runs: what has changed is used, what is wrong changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.config.options import Options
from k3dreg.config.settings import Config
from k3dreg.daemon.reload import Hangup, Reloader
from tests.fakes.logs import heard
from tests.fakes.workers import InlineWorkers, ManualWorkers


def write(text: str) -> None:
    Path("k3dreg.toml").write_text(text)


class ReloaderTests(SynchronousTestCase):
    workers: InlineWorkers

    def setUp(self) -> None:
        self.workers = InlineWorkers()
        self.told: list[str] = []
        self.applied: list[Config] = []
        self.start('cache-size = "3GB"\nalias = ["a.example:1"]')

    def start(self, text: str, *arguments: str, **environment: str) -> None:
        write(text)
        options = Options({"HOME": "/home/someone", **environment})
        options.parseOptions(["--config", "k3dreg.toml", *arguments])
        self.reloader = Reloader(
            options,
            self.workers,
            self.applied.append,
            began=lambda: self.told.append("began"),
            ended=lambda trouble: self.told.append(f"ended {trouble}".rstrip()),
        )

    def reload(self, text: str) -> list[str]:
        """With this file; returns what is logged."""
        write(text)
        with heard() as lines:
            self.successResultOf(Deferred.fromCoroutine(self.reloader.reload()))
        return lines

    def test_what_has_changed_is_applied_and_named(self) -> None:
        lines = self.reload('cache-size = "4GB"\nalias = ["b.example:2"]')
        [config] = self.applied
        self.assertEqual((config.cache_size, config.aliases), (4 * 10**9, ("b.example:2",)))
        self.assertEqual(lines, ["settings read again: changed alias, cache-size"])
        self.assertEqual(self.told, ["began", "ended"])

    def test_what_needs_a_restart_is_applied_as_it_was_at_the_start(self) -> None:
        self.reload('cache-size = "4GB"\nalias = ["a.example:1"]\nreader = false')
        [config] = self.applied
        self.assertEqual((config.cache_size, config.reader), (4 * 10**9, "on"))

    def test_nothing_new_is_said_to_be_nothing(self) -> None:
        lines = self.reload('cache-size = "3GB"\nalias = ["a.example:1"]')
        self.assertEqual((lines, self.applied), (["settings read again: nothing has changed"], []))

    def test_the_command_line_and_the_environment_still_come_first(self) -> None:
        self.start("", "--cache-size", "1GB", K3DREG_LOG_LEVEL="warn")
        self.reload('cache-size = "4GB"\nlog-level = "error"')
        self.assertEqual(self.applied, [])

    def test_a_file_that_is_wrong_changes_nothing_and_what_is_wrong_is_said(self) -> None:
        for text, complaint in (
            ('cache-size = "4GB"\nlog-level = "loud"', "--log-level 'loud' is not one of debug"),
            ('cache-size = "4GB"\ncache-sise = 1', "there is no option 'cache-sise'"),
            ('cache-size = "4GB', "settings file k3dreg.toml"),
        ):
            [line] = self.reload(text)
            self.assertIn("the settings were not changed: ", line)
            self.assertIn(complaint, line)
            self.assertIn(complaint, self.told[-1])
        Path("k3dreg.toml").unlink()
        with heard() as lines:
            self.successResultOf(Deferred.fromCoroutine(self.reloader.reload()))
        self.assertIn("there is no settings file k3dreg.toml", lines[0])
        self.assertEqual(self.applied, [])

    def test_what_cannot_change_while_it_runs_is_named_at_each_reload_until_it_is_as_before(self) -> None:
        text = 'cache-size = "3GB"\nalias = ["a.example:1"]\n'
        for _ in range(2):
            lines = self.reload(text + 'listen = ["tcp:1"]\nreader = false\n[environment]\nAWS_PROFILE = "work"')
            self.assertEqual(lines[1:], ["restart k3dreg to apply these changed settings: environment, listen, reader"])
        self.assertEqual(self.reload(text), ["settings read again: nothing has changed"])
        self.assertEqual(self.applied, [])


class OneAtATimeTests(SynchronousTestCase):
    def test_a_signal_while_settings_are_being_read_has_them_read_once_more(self) -> None:
        write("")
        options = Options({})
        options.parseOptions(["--config", "k3dreg.toml"])
        workers = ManualWorkers()
        sizes: list[int] = []
        reloader = Reloader(options, workers, lambda config: sizes.append(config.cache_size))
        write('cache-size = "1GB"')
        reloads = [Deferred.fromCoroutine(reloader.reload()) for _ in range(3)]
        self.assertEqual(len(workers.waiting), 1)
        workers.work()
        write('cache-size = "2GB"')
        workers.work()
        self.assertEqual((sizes, workers.waiting), ([10**9, 2 * 10**9], []))
        for each in reloads:
            self.successResultOf(each)


class FakeReactor:
    """Calls what is asked for when the test says so, as the reactor does at its next turn."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def callFromThread(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        self.waiting.append(lambda: function(*args, **kwargs))

    def turn(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class HangupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.called: list[str] = []
        reactor = cast(IReactorFromThreads, self.reactor)
        self.hangup = Hangup(reactor, lambda: self.called.append("reload"), lambda: self.called.append("end"))
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))

    def test_the_signal_reloads_in_the_reactors_turn(self) -> None:
        self.hangup.install()
        os.kill(os.getpid(), signal.SIGHUP)
        self.assertEqual(self.called, [])
        self.reactor.turn()
        self.assertEqual(self.called, ["reload"])

    def test_it_is_done_as_before_when_the_daemon_is_gone(self) -> None:
        before: list[int] = []
        signal.signal(signal.SIGHUP, lambda number, frame: before.append(number))
        self.hangup.install()
        self.hangup.remove()
        self.hangup.remove()
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.turn()
        self.assertEqual((before, self.called), ([signal.SIGHUP], []))
