"""The table of settings.  Command line, environment, settings file, reload and docs/configuration.md derive from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import frozen
from twisted.python import usage

from k3dreg.config.docker_context import DEFAULT_SOCKET
from k3dreg.config.engine_address import EngineAddress
from k3dreg.config.refresh_rule import RefreshRule
from k3dreg.config.remote import Remote
from k3dreg.config.retention import RetainRule
from k3dreg.config.setting import Setting, setting, settings_of
from k3dreg.config.settings_file import DEFAULT_FILE
from k3dreg.config.values import (
    choice_of,
    parse_aliases,
    parse_boolean,
    parse_cache_size,
    parse_clusters,
    parse_docker,
    parse_htpasswd,
    parse_index_platforms,
    parse_listen,
    parse_patterns,
    parse_refresh,
    parse_registries,
    parse_remote,
    parse_retain,
    parse_state_dir,
    parse_switch,
    parse_text,
)
from k3dreg.formats.basic_auth import Credentials
from k3dreg.reporting.logger import LEVELS


@frozen(kw_only=True)
class Config:
    """The settings of a daemon: a field for each, in the order of docs/configuration.md.

    Run `python -m tests.docs.settings_table` after a change, to update the table in that file.
    """

    listen: tuple[str, ...] = setting(
        "listen",
        parse_listen,
        "Listen at this Twisted endpoint",
        more="Such as `tcp:5000:interface=127.0.0.1`, `tcp6:5000` or `ssl:5443:privateKey=KEY.pem:certKey=CERT.pem`. "
        "`REGISTRY_HTTP_TLS_CERTIFICATE` and `REGISTRY_HTTP_TLS_KEY` give `REGISTRY_HTTP_ADDR` TLS",
        value="ENDPOINT",
        default_words="`REGISTRY_HTTP_ADDR`, systemd's sockets or `tcp:5000`",
        repeated=True,
        consulted=("REGISTRY_HTTP_ADDR",),
    )
    docker: EngineAddress = setting(
        "docker",
        parse_docker,
        "The engine's address: `unix:///path`, `tcp://host:port` or `ssh://host`",
        more="`DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` give `tcp://` TLS. Over ssh, the engine's socket is "
        "`/var/run/docker.sock` unless the URL has a path: `ssh://host/path/docker.sock`",
        value="URL",
        default_words=f"as for Docker's client, else `unix://{DEFAULT_SOCKET}`",
        consulted=("DOCKER_HOST", "DOCKER_CONTEXT"),
    )
    state_dir: Path = setting(
        "state-dir",
        parse_state_dir,
        "Directory for pushed and cached content",
        value="DIR",
        default_words="root: `/var/lib/k3dreg`, others: `~/.local/state/k3dreg`",
    )
    cache_size: int = setting(  # bytes
        "cache-size",
        parse_cache_size,
        "Largest size of the cache; the least recently used content is evicted first",
        more="Pushed content does not count and is never evicted",
        value="SIZE",
        default="20GB",
        reloadable=True,
    )
    reader: str = setting(
        "reader",
        choice_of("on", "stopped", "off"),
        "How to read the engine's files where k3dreg cannot open them itself: `on`, by a helper container that passes "
        "open directories, or else through stopped containers; `stopped`, through stopped containers only; `off`, not "
        "at all, which is slower",
        more="A helper container runs for half a second, and only if k3dreg runs in a container itself. A stopped "
        "container is created and never started. With `off`, images come by `docker save`",
        value="on|stopped|off",
        default="on",
    )
    docker_root: str = setting(
        "docker-root",
        parse_text,
        "Path by which k3dreg reaches Docker's data directory",
        more="For example a mounted volume: [performance.md](performance.md)",
        value="DIR",
        default_words="the path that Docker reports",
    )
    content_store: str = setting(
        "content-store",
        parse_text,
        "Path by which k3dreg reaches containerd's content store",
        more="As `--docker-root`",
        value="DIR",
        default_words="the path that the engine reports",
    )
    warm: tuple[str, ...] = setting(
        "warm",
        parse_patterns,
        "Prepare images of matching names, such as `'team/*'`, as soon as Docker has them",
        value="PATTERN",
        default_words="none",
        repeated=True,
        reloadable=True,
    )
    refresh: tuple[RefreshRule, ...] = setting(
        "refresh",
        parse_refresh,
        "Ask the registries of matching images whether a tag has moved, at most once per AGE (default `1h`), and let "
        "Docker pull it then",
        more="Such as `'nginx:*'` or `'team/*=15m'`; the first that fits counts. Only images that are known to come "
        "from their registry are replaced ([refresh.md](refresh.md))",
        value="PATTERN[=AGE]",
        default_words="none",
        repeated=True,
        reloadable=True,
    )
    origin_fallback: bool = setting(
        "origin-fallback",
        parse_switch,
        "Fetch from the image's own registry what Docker cannot give, such as digests with the classic image store",
        more="k3dreg caches it ([more](what-docker-cannot-give.md))",
        default="off",
        reloadable=True,
    )
    link_layers: bool = setting(
        "link-layers",
        parse_switch,
        "Link the layers that Docker has unpacked into the node that pulls an image, which then starts at once: "
        "`on` or `off`",
        more="In a container, or not as root, k3dreg runs a helper container for it; see [linking.md](linking.md)",
        value="on|off",
        default="off",
        reloadable=True,
    )
    attach: tuple[str, ...] = setting(
        "attach",
        parse_clusters,
        "Point each cluster of a matching name, such as `'dev*'`, at k3dreg as soon as it starts",
        more="For clusters of k3d, kind and minikube in this Docker. It writes into their nodes; see "
        "[attach.md](attach.md)",
        value="PATTERN",
        default_words="none",
        repeated=True,
        reloadable=True,
    )
    proxy_remote: str | None = setting(  # the registry's host, "docker.io" for Docker Hub; None for every registry
        "proxy-remote-url",
        parse_remote,
        "Serve images of this registry only, such as `https://ghcr.io`",
        more="A client may name it by `ns=` or in the path. k3d's `proxy.remoteURL` sets this",
        value="URL",
        default="*",
        default_words="`*`, every registry",
        variables=("REGISTRY_PROXY_REMOTEURL",),
    )
    proxy_username: str = setting(
        "proxy-username",
        parse_text,
        "User for Docker's pulls from the registry of `proxy-remote-url`; with `*`, from Docker Hub",
        default_words="none",
        option=False,
        variables=("REGISTRY_PROXY_USERNAME",),
    )
    # No option: every user of the machine can read the command lines of its processes.
    proxy_password: str = setting(
        "proxy-password",
        parse_text,
        "Password of `proxy-username`",
        default_words="none",
        option=False,
        variables=("REGISTRY_PROXY_PASSWORD",),
        secret=True,
    )
    aliases: tuple[str, ...] = setting(
        "alias",
        parse_aliases,
        "One more name that images use for this registry, as host:port",
        more="Browsers may open the status page by it, too",
        value="HOST:PORT",
        default_words="k3dreg finds its names",
        repeated=True,
        reloadable=True,
    )
    allow_registries: tuple[str, ...] = setting(  # () for every registry
        "allow-registry",
        parse_registries,
        "Allow pulls from this registry, such as `ghcr.io`",
        more="Or a pattern, such as `*.example.com`. `*` is every registry but those on this machine "
        "([security.md](security.md))",
        value="PATTERN",
        default_words="`*`, all but this machine's own",
        repeated=True,
        reloadable=True,
    )
    htpasswd: Path | None = setting(
        "htpasswd",
        parse_htpasswd,
        "Ask for a password; the file lists the users and is made by `htpasswd -B`",
        value="FILE",
        default_words="no password",
        reloadable=True,
        variables=("REGISTRY_AUTH_HTPASSWD_PATH",),
    )
    anonymous_pull: bool = setting(
        "anonymous-pull",
        parse_switch,
        "With `--htpasswd`: let clients pull and see the status page without a password",
        more="A push needs one",
        default="off",
        reloadable=True,
    )
    deleting: bool = setting(
        "REGISTRY_STORAGE_DELETE_ENABLED",
        parse_boolean,
        "Let clients delete what was pushed",
        more="`true` or `false`",
        default="true",
        reloadable=True,
        option=False,
        key=False,
    )
    retain: tuple[RetainRule, ...] = setting(
        "retain",
        parse_retain,
        "Of matching pushed tags, keep only the newest of each repository, as in `'tilt-*=20'`, or those that were "
        "pushed or pulled lately, as in `'*-dev=14d'`",
        more="For each tag the first rule that fits counts ([more](pushing.md#what-is-not-kept-for-ever))",
        value="PATTERN=RULE",
        default_words="everything is kept",
        repeated=True,
        reloadable=True,
    )
    sparse: bool = setting(
        "REGISTRY_VALIDATION_DISABLED",
        parse_boolean,
        "Accept pushed manifests and indexes of which parts are missing",
        more="`true` or `false`",
        default="false",
        reloadable=True,
        option=False,
        key=False,
    )
    whole_indexes: bool = setting(
        "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS",
        parse_index_platforms,
        "With `none`, accept pushed indexes of which manifests are missing",
        more="`all` or `none`",
        default="all",
        reloadable=True,
        option=False,
        key=False,
    )
    status_page: bool = setting(
        "status-page",
        parse_switch,
        "Serve the status page at `/`: `on` or `off`",
        value="on|off",
        default="on",
        reloadable=True,
    )
    log_level: str = setting(
        "log-level",
        choice_of(*LEVELS),
        f"Log this level and those above: {', '.join(f'`{level}`' for level in LEVELS)}",
        value="LEVEL",
        default="info",
        reloadable=True,
    )
    log_format: str = setting(
        "log-format",
        choice_of("text", "json"),
        "`text`: readable lines, or `json`: one JSON object per line",
        value="FORMAT",
        default="text",
    )
    settings_file: str = setting(  # "" for the default file, which may be absent
        "config",
        parse_text,
        "Read settings from this TOML file; its keys are option names",
        more="`[environment]` is for variables such as `AWS_PROFILE`. The default file may be absent",
        value="FILE",
        default_words=f"`{DEFAULT_FILE}`",
        key=False,
    )

    def __attrs_post_init__(self) -> None:
        """Raise `usage.UsageError` for settings that contradict each other."""
        if self.anonymous_pull and self.htpasswd is None:
            raise usage.UsageError(
                "--anonymous-pull needs --htpasswd: without a password file every client may pull and push"
            )
        if bool(self.proxy_username) != bool(self.proxy_password):
            raise usage.UsageError("REGISTRY_PROXY_USERNAME and REGISTRY_PROXY_PASSWORD: set both or neither")

    @property
    def remote(self) -> Remote:
        """The registries whose images are served, with the credentials for them."""
        user = self.proxy_username
        return Remote(self.proxy_remote, Credentials.login(user, self.proxy_password) if user else None)


SETTINGS: Mapping[str, Setting] = settings_of(Config)
