"""Options and environment, checked and turned into one frozen `Config`.

Precedence: command line, then `K3DREG_…`, then what other programs call the same thing
(`REGISTRY_HTTP_ADDR` of the official registry image, `DOCKER_HOST` of Docker's client), then the settings file, then
the default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen
from twisted.python import usage

from k3dreg.config.docker_context import DEFAULT_SOCKET
from k3dreg.config.engine_address import EngineAddress
from k3dreg.config.inherited_sockets import inherited_endpoints
from k3dreg.config.remote import Remote
from k3dreg.config.settings_file import DEFAULT_FILE, with_settings
from k3dreg.config.usage import COMMANDS, CommandLine, commands_section
from k3dreg.config.values import (
    check_aliases,
    check_anonymous_pull,
    check_cache_size,
    check_choice,
    check_deleting,
    check_docker,
    check_endpoint,
    check_htpasswd,
    check_patterns,
    check_registries,
    check_remote,
    check_switch,
    default_state_dir,
    endpoint_of_address,
)
from k3dreg.oci.errors import UsageError
from k3dreg.reporting.logger import LEVELS

DEFAULT_DOCKER = f"unix://{DEFAULT_SOCKET}"
# Whoever lists processes sees their command lines.
_NOT_FOR_THE_COMMAND_LINE = ("proxy-username", "proxy-password")
LOG_FORMATS = ("text", "json")
READERS = ("on", "stopped", "off")


@frozen
class Config:
    """Everything a daemon is started with.  `cache_size` in bytes.

    `aliases` are names of this registry beside those it finds out by itself; `deleting` is whether clients may delete
    what was pushed.  `content_store` and `docker_root` are where the engine's directories are here, "" for where the
    engine says; `reader`, one of `READERS`, is whether its files may be read by means of containers, or only of such as
    never run.  `status_page` is whether `/` is one; `log_format` is one of `LOG_FORMATS`.  `htpasswd` is the file of
    those who may use this registry, None for everybody; with `anonymous_pull` the others may read.  `remote` is which
    registries' images are given.  `warm` are patterns of names of images that are made ready before anybody asks for
    them; `allow_registries` are patterns of registries that may be asked, none for every one.
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
    reader: str = "on"
    origin_fallback: bool = False
    status_page: bool = True
    log_format: str = "text"
    htpasswd: Path | None = None
    anonymous_pull: bool = False
    remote: Remote = Remote()  # noqa: RUF009  (it is frozen)
    warm: tuple[str, ...] = ()
    allow_registries: tuple[str, ...] = ()


class Options(CommandLine):
    """The command line of `k3dreg` and `twistd k3dreg`.  After parsing, `config` is set."""

    synopsis = (
        "Usage: k3dreg [OPTION]...             run the registry in the foreground\n"
        "       k3dreg COMMAND [OPTION]...     run one of the commands below"
    )
    about = (
        "An OCI registry whose content is the local Docker engine's images. "
        "Each option can also be given in the environment: --cache-size as K3DREG_CACHE_SIZE."
    )
    examples: tuple[str, ...] = ("k3dreg --listen tcp:5000:interface=127.0.0.1 --cache-size 50GB",)
    optParameters = [  # noqa: RUF012  (the shape of usage.Options)
        [
            "docker",
            None,
            None,
            "The engine's address: unix:///path, tcp://host:port or ssh://host "
            f"[as for Docker's client, else {DEFAULT_DOCKER}]",
        ],
        ["config", None, None, f"Read settings from this TOML file; its keys are option names [{DEFAULT_FILE}]"],
        [
            "state-dir",
            None,
            None,
            "Directory for pushed and cached content [root: /var/lib/k3dreg, others: ~/.local/state/k3dreg]",
        ],
        [
            "cache-size",
            None,
            None,
            "Largest size of the cache; the least recently used content is evicted first [20GB]",
        ],
        [
            "content-store",
            None,
            None,
            "Path by which k3dreg reaches containerd's content store [the path that the engine reports]",
        ],
        [
            "docker-root",
            None,
            None,
            "Path by which k3dreg reaches Docker's data directory [the path that Docker reports]",
        ],
        [
            "reader",
            None,
            None,
            "How to reach the engine's files where k3dreg cannot open them itself: on, by a helper container that runs "
            "for a moment; stopped, by containers that never start; off, not at all, which is slower [on]",
        ],
        ["status-page", None, None, "Serve the status page at /: on or off [on]"],
        [
            "htpasswd",
            None,
            None,
            "Ask for a password; the file lists the users and is made by htpasswd -B [no password]",
        ],
        [
            "proxy-remote-url",
            None,
            None,
            "Serve images of this registry only, such as https://ghcr.io [*, every registry]",
        ],
        ["log-level", None, None, f"Log this level and those above: {', '.join(LEVELS)} [info]"],
        ["log-format", None, None, f"{' or '.join(LOG_FORMATS)}: readable lines, or one JSON object a line [text]"],
    ]

    optFlags = [  # noqa: RUF012  (the shape of usage.Options)
        [
            "origin-fallback",
            None,
            "Fetch from the image's own registry what Docker cannot give, such as digests with the classic image store",
        ],
        ["anonymous-pull", None, "With --htpasswd: let clients pull and see the status page without a password"],
    ]

    config: Config
    # What the settings file's `[environment]` adds to the process's own.
    settings_environment: dict[str, str]
    # How many sockets the service manager has opened for nothing.
    idle_sockets: int

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # As it is now: the daemon adds to the process's own what the settings file says.
        self._environment = dict(environment)
        self._arguments: tuple[str, ...] = ()
        # Looked for once: later they are in use, and their numbers may be those of other files.
        self._inherited: tuple[str, ...] | None = None
        self._listen: list[str] = []
        self._aliases: list[str] = []
        self._warm: list[str] = []
        self._allow_registries: list[str] = []

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line, by default this process's.  Raises `usage.UsageError`."""
        self._arguments = tuple(sys.argv[1:] if options is None else options)
        super().parseOptions(self._arguments)  # type: ignore[no-untyped-call]

    def parseArgs(self, *rest: str) -> None:
        """The registry takes options only.  Raises `usage.UsageError` for anything else."""
        if not rest:
            return
        if rest[0] in COMMANDS:
            name = rest[0]
            raise usage.UsageError(f"{name!r} follows options: a command comes first, as in k3dreg {name} [OPTION]...")
        raise usage.UsageError(f"{rest[0][:100]!r} is not an option")

    def sections(self) -> list[str]:
        """Return the commands, too, where they can be given: twistd runs the registry alone."""
        return [*([] if self.parent else [commands_section()]), *super().sections()]

    def read_again(self) -> Options:
        """The same command line and environment with the files as they are now.  Blocks; in any thread.

        Raises `usage.UsageError`.
        """
        again = Options(self._environment)
        again._inherited = self._inherited
        again.parseOptions(self._arguments)
        return again

    def opt_listen(self, endpoint: str) -> None:
        """Listen at this Twisted endpoint; may be repeated [REGISTRY_HTTP_ADDR, systemd's sockets or tcp:5000]"""
        self._listen.append(endpoint)

    def opt_alias(self, name: str) -> None:
        """One more name that images use for this registry, as host:port; may be repeated [k3dreg finds its names]"""
        self._aliases.append(name)

    def opt_warm(self, pattern: str) -> None:
        """Prepare images of matching names, such as 'team/*', as soon as Docker has them; may be repeated [none]"""
        self._warm.append(pattern)

    def opt_allow_registry(self, pattern: str) -> None:
        """Allow pulls from this registry, such as ghcr.io; may be repeated [*, all but this machine's own]"""
        self._allow_registries.append(pattern)

    def postOptions(self) -> None:
        """Check everything.  Raises `usage.UsageError`, which names the setting."""
        path = self["config"] or self._environment.get("K3DREG_CONFIG") or None
        repeated = ("listen", "alias", "warm", "allow-registry")
        names = {*self, *repeated, *_NOT_FOR_THE_COMMAND_LINE} - {"config", "help", "version"}
        try:
            environment, self.settings_environment = with_settings(self._environment, path, names)
        except UsageError as error:
            raise usage.UsageError(str(error)) from error

        def setting(name: str, *others: str, default: str) -> str:
            variable = "K3DREG_" + name.upper().replace("-", "_")
            values = (self.get(name), environment.get(variable), *(environment.get(other) for other in others))
            return next((value for value in values if value), default)

        def flag(name: str) -> bool:
            variable = "K3DREG_" + name.upper().replace("-", "_")
            return bool(self[name]) or check_switch(name, environment.get(variable) or "off")

        listen = self._listen or environment.get("K3DREG_LISTEN", "").split()
        if self._inherited is None:
            self._inherited = inherited_endpoints()
        if not listen:
            address = environment.get("REGISTRY_HTTP_ADDR", "")
            tls = [environment.get(f"REGISTRY_HTTP_TLS_{name}", "") for name in ("CERTIFICATE", "KEY")]
            # The service manager's sockets are for a door without TLS.
            inherited = [] if address or any(tls) else self._inherited
            listen = [*inherited] or [endpoint_of_address(address or ":5000", *tls)]
        self.idle_sockets = len(self._inherited) - sum(each.startswith("systemd:") for each in listen)
        htpasswd = check_htpasswd(
            setting("htpasswd", "REGISTRY_AUTH_HTPASSWD_PATH", default=""), environment.get("REGISTRY_AUTH", "")
        )
        self.config = Config(
            listen=tuple(map(check_endpoint, listen)),
            docker=check_docker(setting("docker", default=""), environment),
            state_dir=Path(setting("state-dir", default=default_state_dir(environment))),
            cache_size=check_cache_size(setting("cache-size", default="20GB")),
            log_level=check_choice("log-level", setting("log-level", default="info"), LEVELS),
            origin_fallback=flag("origin-fallback"),
            aliases=check_aliases(self._aliases or environment.get("K3DREG_ALIAS", "").split()),
            content_store=setting("content-store", default=""),
            docker_root=setting("docker-root", default=""),
            reader=check_choice("reader", setting("reader", default="on"), READERS),
            status_page=check_switch("status-page", setting("status-page", default="on")),
            log_format=check_choice("log-format", setting("log-format", default="text"), LOG_FORMATS),
            htpasswd=htpasswd,
            anonymous_pull=check_anonymous_pull(flag("anonymous-pull"), htpasswd),
            remote=check_remote(
                setting("proxy-remote-url", "REGISTRY_PROXY_REMOTEURL", default="*"),
                setting("proxy-username", "REGISTRY_PROXY_USERNAME", default=""),
                setting("proxy-password", "REGISTRY_PROXY_PASSWORD", default=""),
            ),
            warm=check_patterns(self._warm or environment.get("K3DREG_WARM", "").split()),
            allow_registries=check_registries(
                self._allow_registries or environment.get("K3DREG_ALLOW_REGISTRY", "").split()
            ),
            deleting=check_deleting(environment.get("REGISTRY_STORAGE_DELETE_ENABLED", "")),
        )
