"""The settings that may change while the daemon runs are those that it applies."""

from __future__ import annotations

import inspect
import re

from k3dreg.config.settings import SETTINGS
from k3dreg.daemon.app import App


def test_every_reloadable_setting_is_applied_and_no_other() -> None:
    """The table promises it to the user, in docs/configuration.md and in the log."""
    applied = set(re.findall(r"\bconfig\.(\w+)", inspect.getsource(App.configure)))
    assert applied == {field for field, setting in SETTINGS.items() if setting.reloadable}
