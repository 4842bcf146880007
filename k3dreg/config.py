"""Options and environment, checked and turned into one frozen `Config`.

Precedence: command line, then `K3DREG_…`, then what other programs call the same thing
(`REGISTRY_HTTP_ADDR` of the official registry image, `DOCKER_HOST` of Docker's client), then the settings file, then
the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen
from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from k3dreg import __version__
from k3dreg.engine.address import EngineAddress
from k3dreg.engine.locating import DEFAULT_SOCKET, locate_engine
from k3dreg.log import LEVELS
from k3dreg.model.errors import InvalidName, UsageError
from k3dreg.names import OwnNames
from k3dreg.settings_file import DEFAULT_FILE, with_settings

DEFAULT_DOCKER = f"unix://{DEFAULT_SOCKET}"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# Below this a single image would not fit and every pull would export again.
_SMALLEST_CACHE = 64 * 1024 * 1024


LOG_FORMATS = ("text", "json")


@frozen
class Config:
    """Everything a daemon is started with.  `cache_size` in bytes.

    `aliases` are names of this registry beside those it finds out by itself; `deleting` is whether clients may delete
    what was pushed.  `content_store` and `docker_root` are where the engine's directories are here, "" for where the
    engine says; `reader` is whether its files may be read through containers.  `status_page` is whether `/` is one;
    `log_format` is one of `LOG_FORMATS`.
    """

    listen: tuple[str, ...]
    docker: EngineAddress
    state_dir: Path
    cache_size: int
    log_level: str
    aliases: tuple[str, ...] = ()
    deleting: bool = True
    content_store: str = ""
    docker_root: str = ""
    reader: bool = True
    origin_fallback: bool = False
    status_page: bool = True
    log_format: str = "text"


def parse_size(text: str) -> int:
    """Bytes from `500MB`, `20G`, `1.5GiB`, `1048576`.  Raises `usage.UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise usage.UsageError(f"not a size: {text!r} (a number with k, M, G or T, such as 20GB)")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def endpoint_of_address(address: str) -> str:
    """The Twisted endpoint string for a `REGISTRY_HTTP_ADDR`: `:5000`, `0.0.0.0:5000`, `localhost:5000`, `[::]:5000`.

    Raises `usage.UsageError`.
    """
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise usage.UsageError(f"REGISTRY_HTTP_ADDR={address!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        escaped = host[1:-1].replace(":", "\\:")
        return f"tcp6:{port}:interface={escaped}"
    if ":" in host:
        raise usage.UsageError(f"REGISTRY_HTTP_ADDR={address!r}: an IPv6 address is written in brackets")
    return f"tcp:{port}:interface={host}" if host else f"tcp:{port}"


def check_endpoint(description: str) -> str:
    """The endpoint string, when Twisted understands it.  Raises `usage.UsageError`."""
    try:
        # Parsing needs no reactor, listening does.
        serverFromString(None, description)
    except Exception as error:  # each kind of endpoint has its own ways to refuse
        raise usage.UsageError(f"--listen {description!r} is not an endpoint such as tcp:5000: {error}") from error
    return description


def check_docker(url: str, environment: Mapping[str, str]) -> EngineAddress:
    """Where the engine is; "" for the one that Docker's own settings mean.  Raises `usage.UsageError`."""
    try:
        return locate_engine(url, environment)
    except UsageError as error:
        raise usage.UsageError(f"--docker: {error}") from error


def check_aliases(names: Sequence[str]) -> tuple[str, ...]:
    """Names of this registry.  Raises `usage.UsageError`."""
    try:
        return OwnNames(names).hosts
    except InvalidName as error:
        raise usage.UsageError(f"--alias: {error}, such as registry.localhost:5000") from error


def check_switch(name: str, value: str) -> bool:
    """`on` or `off`.  Raises `usage.UsageError`."""
    if value not in ("on", "off"):
        raise usage.UsageError(f"--{name} is either on or off, not {value!r}")
    return value == "on"


def check_deleting(value: str) -> bool:
    """`REGISTRY_STORAGE_DELETE_ENABLED` of the official registry image, as k3d and ctlptl set it; on by default.

    Raises `usage.UsageError`.
    """
    if value.strip().lower() not in ("", "true", "false", "1", "0", "t", "f"):
        raise usage.UsageError(f"REGISTRY_STORAGE_DELETE_ENABLED={value!r} is neither true nor false")
    return value.strip().lower() not in ("false", "0", "f")


def default_state_dir(environment: Mapping[str, str]) -> str:
    """Where state is kept when nobody says.

    Where the service manager says (systemd.exec(5), StateDirectory=); the system's place for root, and for others who
    may write there, as in a container; the user's own else.
    """
    if told := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return told
    system = "/var/lib/k3dreg"
    if os.geteuid() == 0 or os.access(system, os.W_OK):
        return system
    base = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME", "."), ".local", "state")
    return os.path.join(base, "k3dreg")


class Options(usage.Options):
    """The command line of `k3dreg` and `twistd k3dreg`.  After parsing, `config` is set."""

    synopsis = (
        "Usage: k3dreg [--listen ENDPOINT]... [--alias HOST:PORT]... [--docker URL] [--state-dir DIR] "
        "[--cache-size SIZE] [--origin-fallback] [--log-level LEVEL]"
    )
    longdesc = (
        "An OCI registry whose content is the local Docker engine's images. "
        "Each option can also be given in the environment: --cache-size as K3DREG_CACHE_SIZE."
    )
    optParameters = [  # noqa: RUF012  (the shape of usage.Options)
        [
            "docker",
            None,
            None,
            f"The engine: unix:///path, tcp://host:port or ssh://host [as Docker's client: else {DEFAULT_DOCKER}]",
        ],
        ["config", None, None, f"A settings file, TOML, whose keys are the names of options [{DEFAULT_FILE}]"],
        ["state-dir", None, None, "Where exported images are kept [/var/lib/k3dreg, or ~/.local/state/k3dreg]"],
        ["cache-size", None, None, "How much of them to keep; what was not used for longest goes first [20GB]"],
        ["content-store", None, None, "Where the engine's content store is here [where the engine says]"],
        ["docker-root", None, None, "Where Docker's data directory is here [where the engine says]"],
        ["reader", None, None, "Read the engine's files through containers that are never started: on or off [on]"],
        ["status-page", None, None, "Show a status page at /: on or off [on]"],
        ["log-level", None, None, f"One of {', '.join(LEVELS)} [info]"],
        ["log-format", None, None, f"{' or '.join(LOG_FORMATS)}: lines for people, or an object per line [text]"],
    ]

    optFlags = [  # noqa: RUF012  (the shape of usage.Options)
        ["origin-fallback", None, "Fetch what Docker cannot give, by digest, from an image's own registry"],
    ]

    config: Config
    # What the settings file's `[environment]` adds to the process's own.
    settings_environment: dict[str, str]

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._environment = environment
        self._listen: list[str] = []
        self._aliases: list[str] = []

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen, as a Twisted endpoint string; may be repeated [REGISTRY_HTTP_ADDR, else tcp:5000]"""
        self._listen.append(endpoint)

    def opt_alias(self, name: str) -> None:
        """Another name of this registry, host:port as in an image's name; may be repeated"""
        self._aliases.append(name)

    def opt_version(self) -> None:
        """Print the version and exit"""
        print(f"k3dreg {__version__}")  # noqa: T201
        raise SystemExit(0)

    def postOptions(self) -> None:
        """Check everything.  Raises `usage.UsageError`, which names the setting."""
        path = self["config"] or self._environment.get("K3DREG_CONFIG") or None
        names = {*self, "listen", "alias"} - {"config", "help", "version"}
        try:
            environment, self.settings_environment = with_settings(self._environment, path, names)
        except UsageError as error:
            raise usage.UsageError(str(error)) from error

        def setting(name: str, *others: str, default: str) -> str:
            variable = "K3DREG_" + name.upper().replace("-", "_")
            values = (self[name], environment.get(variable), *(environment.get(other) for other in others))
            return next((value for value in values if value), default)

        listen = self._listen or environment.get("K3DREG_LISTEN", "").split()
        if not listen:
            address = environment.get("REGISTRY_HTTP_ADDR", "")
            listen = [endpoint_of_address(address) if address else "tcp:5000"]
        cache_size = parse_size(setting("cache-size", default="20GB"))
        if cache_size < _SMALLEST_CACHE:
            raise usage.UsageError(f"--cache-size must be at least {_SMALLEST_CACHE >> 20}MiB")
        level = setting("log-level", default="info").lower()
        if level not in LEVELS:
            raise usage.UsageError(f"--log-level {level!r} is not one of {', '.join(LEVELS)}")
        log_format = setting("log-format", default="text").lower()
        if log_format not in LOG_FORMATS:
            raise usage.UsageError(f"--log-format {log_format!r} is not one of {', '.join(LOG_FORMATS)}")
        self.config = Config(
            listen=tuple(map(check_endpoint, listen)),
            docker=check_docker(setting("docker", default=""), environment),
            state_dir=Path(setting("state-dir", default=default_state_dir(environment))),
            cache_size=cache_size,
            log_level=level,
            origin_fallback=bool(self["origin-fallback"])
            or check_switch("origin-fallback", environment.get("K3DREG_ORIGIN_FALLBACK") or "off"),
            aliases=check_aliases(self._aliases or environment.get("K3DREG_ALIAS", "").split()),
            content_store=setting("content-store", default=""),
            docker_root=setting("docker-root", default=""),
            reader=check_switch("reader", setting("reader", default="on")),
            status_page=check_switch("status-page", setting("status-page", default="on")),
            log_format=log_format,
            deleting=check_deleting(environment.get("REGISTRY_STORAGE_DELETE_ENABLED", "")),
        )
