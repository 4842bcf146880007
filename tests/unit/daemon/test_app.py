"""A daemon applies the settings that may change while it runs, and closes what it has opened."""

from __future__ import annotations

import inspect
import re
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from k3dreg.config.settings import SETTINGS
from k3dreg.daemon.app import App
from k3dreg.daemon.closing import Closing
from tests.fakes.daemon_options import options_without_engine


def test_every_reloadable_setting_is_applied_and_no_other() -> None:
    """The table promises it to the user, in docs/configuration.md and in the log."""
    applied = set(re.findall(r"\bconfig\.(\w+)", inspect.getsource(App.configure)))
    assert applied == {field for field, setting in SETTINGS.items() if setting.reloadable}


# In the order in which they are opened.  What comes later uses what comes before it, and is closed first.
CLOSED = """
Workers.stop
HTTPConnectionPool.closeCachedConnections
EngineClient.shutdown
StateDirectory.close
App.start.<locals>.<lambda>
PushedContent.close
BlobStore.close
Deferred.cancel
ReaderFiles.close
Arrivals.shutdown
Monitor.shutdown
Resolver.shutdown
ContentStoreSource.shutdown
LayerStoreSource.shutdown
ExportSource.shutdown
Workers.stop
Workers.stop
HTTPConnectionPool.closeCachedConnections
Repair.shutdown
OriginFallback.shutdown
Refresh.shutdown
PullInProgress.shutdown
Workers.stop
LayerLinking.shutdown
AdvanceLinking.stop
Uploads.shutdown
Collector.stop
Workers.stop
Listeners.shutdown
EngineLists.shutdown
Prefetch.stop
ClusterWatch.stop
Connections.shutdown
Events.shutdown
Port.loseConnection
Deferred.cancel
"""


class ClosingTests(TestCase):
    async def test_everything_that_is_opened_is_closed_in_the_opposite_order(self) -> None:
        closed: list[str] = []
        add = Closing.add

        def recorded(closing: Closing, close: Any) -> None:
            name = getattr(close, "__qualname__", repr(close))

            def closes() -> Any:
                closed.insert(0, name)
                return close()

            add(closing, closes)

        self.patch(Closing, "add", recorded)
        app = App(options_without_engine(self.mktemp()).config, reactor)
        await app.start()
        await app.stop()
        self.assertEqual(closed, CLOSED.split())
