"""Where settings are given, and which place comes first.

Precedence: command line, then `K3DREG_…`, then what other programs call the same thing
(`REGISTRY_HTTP_ADDR` of the official registry image, `DOCKER_HOST` of Docker's client), then the settings file, then
its `[environment]`, then the default.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from k3dreg.config.setting import Setting
from k3dreg.config.settings import SETTINGS, Config
from k3dreg.config.settings_file import SettingsFile, read_settings_file

_FILE = SETTINGS["settings_file"]


@frozen
class Sources:
    """`command_line` are the values of options by their names; `sockets` are those of the service manager."""

    command_line: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, str]
    file: SettingsFile
    sockets: tuple[str, ...]

    @property
    def added_environment(self) -> dict[str, str]:
        """Return what the settings file's `[environment]` adds to the process's own."""
        return {name: value for name, value in self.file.environment.items() if name not in self.environment}

    def config(self) -> Config:
        """Return the settings, checked.  Raises `usage.UsageError`, which names the setting."""
        environment = {**self.added_environment, **self.environment}
        return Config(
            **{
                field: each.parse(each.given(self._values(each), environment, self.sockets))
                for field, each in SETTINGS.items()
            }
        )

    def _values(self, setting: Setting) -> tuple[str, ...]:
        """Return what the first place that has the setting says; nothing where the default counts."""
        variables = (setting.variable, *setting.variables)
        if values := self.command_line.get(setting.name):
            return values
        text = _first(self.environment, variables)
        # What `parse` finds in the environment by itself comes before the file, too.
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
    """Return the first of these that is not empty; "" for none."""
    return next((text for name in variables if (text := environment.get(name))), "")
