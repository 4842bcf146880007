"""Read the settings file, which k3d can mount into its registry, while it cannot set the registry's environment.

    # /etc/k3dreg/k3dreg.toml
    cache-size = "50GB"
    alias = ["registry.localhost:5000"]
    [environment]
    AWS_PROFILE = "work"

The keys are the names of options.
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
    """The content of a settings file.

    `texts` are the values by key, as the text that an environment variable would have.  `environment` is the table
    `[environment]`.
    """

    texts: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}


def read_settings_file(path: str, keys: Collection[str]) -> SettingsFile:
    """Return the content of the settings file at `path`, or of the default file, which may be absent, if `path` is "".

    `keys` are the allowed keys.  Raises `UsageError` for a file that cannot be read or used.  Blocks.
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
    """Return a value as the text that an environment variable would have.  Raises `UsageError` for other types."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    raise UsageError(f"settings file: {name} must be a string, a number, true, false or a list of strings")
