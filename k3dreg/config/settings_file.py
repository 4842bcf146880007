"""The settings file: what k3d, which can give a registry no environment of one's own choosing, lets be mounted.

    # /etc/k3dreg/k3dreg.toml
    cache-size = "50GB"
    alias = ["registry.localhost:5000"]
    [environment]
    AWS_PROFILE = "work"

A key is an option's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from attrs import frozen

from k3dreg.oci.errors import UsageError

DEFAULT_FILE = "/etc/k3dreg/k3dreg.toml"


@frozen
class SettingsFile:
    """`texts` are the values by their keys, as an environment variable would have them; `environment` is the table."""

    texts: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}


def read_settings_file(path: str, keys: Collection[str]) -> SettingsFile:
    """Return what the file says.  `path` "" means the default file, which may be absent.

    `keys` are those there may be.  Raises `UsageError`.  Blocks.
    """
    where = path or DEFAULT_FILE
    try:
        settings = tomllib.loads(Path(where).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not path:
            return SettingsFile()
        raise UsageError(f"there is no settings file {path}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"settings file {where}: {getattr(error, 'strerror', None) or error}") from error
    environment = settings.pop("environment", {})
    if not isinstance(environment, dict) or not all(isinstance(value, str) for value in environment.values()):
        raise UsageError(f"settings file {where}: the values in [environment] must be strings")
    for name in settings:
        if name not in keys:
            raise UsageError(f"settings file {where}: there is no option {name!r}")
    return SettingsFile({name: _text(name, value) for name, value in settings.items()}, environment)


def _text(name: str, value: object) -> str:
    """As the variable would have it.  Raises `UsageError`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    raise UsageError(f"settings file: {name} must be a string, a number, true, false or a list of strings")
