"""The settings file: what k3d, which can give a registry no environment of one's own choosing, lets be mounted.

    # /etc/k3dreg/k3dreg.toml
    cache-size = "50GB"
    alias = ["registry.localhost:5000"]
    [environment]
    AWS_PROFILE = "work"

A key is an option's name.  The file counts after the environment, so it is read as more of that.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from k3dreg.oci.errors import UsageError

DEFAULT_FILE = "/etc/k3dreg/k3dreg.toml"
# What other programs call the same thing counts as the environment's word, too.
_SAME = {
    "listen": ("REGISTRY_HTTP_ADDR",),
    "htpasswd": ("REGISTRY_AUTH_HTPASSWD_PATH",),
    "proxy-remote-url": ("REGISTRY_PROXY_REMOTEURL",),
    "proxy-username": ("REGISTRY_PROXY_USERNAME",),
    "proxy-password": ("REGISTRY_PROXY_PASSWORD",),
    "docker": ("DOCKER_HOST", "DOCKER_CONTEXT"),
}


def with_settings(
    environment: Mapping[str, str], path: str | None, options: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The environment with the file's settings where it says nothing itself; and the file's `[environment]`.

    `path` None means the default file, which may be absent.  `options` are the keys there may be.
    Raises `UsageError`.  Reads a file: call it before the reactor runs.
    """
    try:
        text = Path(path or DEFAULT_FILE).read_text(encoding="utf-8")
        settings = tomllib.loads(text)
    except FileNotFoundError as error:
        if path is None:
            return dict(environment), {}
        raise UsageError(f"there is no settings file {path}") from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"settings file {path or DEFAULT_FILE}: {getattr(error, 'strerror', None) or error}"
        ) from error
    extra = settings.pop("environment", {})
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise UsageError(f"settings file {path or DEFAULT_FILE}: the values in [environment] must be strings")
    found = {name: value for name, value in extra.items() if name not in environment}
    merged = {**environment, **found}
    for name, value in settings.items():
        if name not in options:
            raise UsageError(f"settings file {path or DEFAULT_FILE}: there is no option {name!r}")
        variable = "K3DREG_" + name.upper().replace("-", "_")
        if not any(environment.get(other) for other in (variable, *_SAME.get(name, ()))):
            merged[variable] = _text(name, value)
            merged.update(dict.fromkeys(_SAME.get(name, ()), ""))
    return merged, found


def _text(name: str, value: object) -> str:
    """As the variable would have it.  Raises `UsageError`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    raise UsageError(f"settings file: {name} must be a string, a number, true, false or a list of strings")
