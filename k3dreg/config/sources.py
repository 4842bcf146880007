"""The sources of settings, and their precedence.

The first source that has a setting counts: the command line, the variable `K3DREG_…`, a variable of another program
(`REGISTRY_HTTP_ADDR` of the official registry image, `DOCKER_HOST` of Docker's client), the settings file, the settings
file's `[environment]`, the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from k3dreg.config.setting import Setting
from k3dreg.config.settings import SETTINGS, Config
from k3dreg.config.settings_file import SettingsFile, read_settings_file

_FILE = SETTINGS["settings_file"]


@frozen
class Sources:
    """Everything that settings are read from.

    `command_line` are the values of options by name.  `environment` is that of the process.  `sockets` are the endpoint
    strings of the service manager's sockets.
    """

    command_line: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, str]
    file: SettingsFile
    sockets: tuple[str, ...]

    @property
    def added_environment(self) -> dict[str, str]:
        """The variables of the settings file's `[environment]` that the process's own environment does not have."""
        return {name: value for name, value in self.file.environment.items() if name not in self.environment}

    def config(self) -> Config:
        """Return the settings, checked.  Raises `usage.UsageError`, which names the setting."""
        return Config(**{field: self.value(field) for field in SETTINGS})

    def value(self, field: str) -> Any:
        """Return the value of the setting in this field of `Config`.  Raises `usage.UsageError`, which names it."""
        setting, environment = SETTINGS[field], {**self.added_environment, **self.environment}
        return setting.parse(setting.given(self._values(setting), environment, self.sockets))

    def _values(self, setting: Setting) -> tuple[str, ...]:
        """Return the values from the first source that has the setting; none if the default counts."""
        variables = (setting.variable, *setting.variables)
        if values := self.command_line.get(setting.name):
            return values
        text = _first(self.environment, variables)
        # Variables that `parse` looks at itself come before the settings file, too.
        if not text and not _first(self.environment, setting.consulted):
            text = self.file.texts.get(setting.name, "")
        text = text or _first(self.added_environment, variables)
        return tuple(text.split()) if setting.repeated else (text,) if text else ()


def read_sources(
    command_line: Mapping[str, tuple[str, ...]], environment: Mapping[str, str], sockets: tuple[str, ...]
) -> Sources:
    """Read the settings file that the command line or the environment names.  Raises `UsageError`.  Blocks."""
    path = (*command_line.get(_FILE.name, ()), "")[0] or environment.get(_FILE.variable, "")
    file = read_settings_file(path, {each.name for each in SETTINGS.values() if each.key})
    return Sources(command_line, environment, file, sockets)


def _first(environment: Mapping[str, str], variables: tuple[str, ...]) -> str:
    """Return the text of the first of these variables that is not empty; "" if all are."""
    return next((text for name in variables if (text := environment.get(name))), "")
