"""The address of an engine as one value, and its forms as a URL."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from k3dreg.oci.errors import UsageError

_TCP_PORT = 2375  # IANA: docker
_TLS_PORT = 2376  # IANA: docker-s, the same with TLS
# From the first colon that is not the scheme's to the last @.  The password is between them even in an invalid URL.
_PASSWORD = re.compile(r":(?!//).*@", re.DOTALL)
_USAGE = "use unix:///path/to/docker.sock, tcp://HOST[:PORT], http://HOST[:PORT] or ssh://[USER@]HOST[:PORT]"


@frozen
class TlsMaterial:
    """PEM texts for TLS to an engine.

    `ca` are the authorities that may sign the engine's certificate, b"" for those that this machine trusts.
    `certificate` and `key` are k3dreg's own, both b"" for none.
    """

    ca: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)


@frozen
class EngineAddress:
    """The address of an engine: a UNIX socket (`path`), TCP (`host`, `port` and perhaps `tls`), or ssh.

    With `ssh`, `host` is any name that the ssh client knows.  A `port` of 0 and a `user` of "" mean those of the ssh
    client's own settings.  `path` is the engine's socket on the other machine, "" for the usual one.
    """

    path: str = ""
    host: str = ""
    port: int = 0
    tls: TlsMaterial | None = None
    ssh: bool = False
    user: str = ""

    @property
    def socket(self) -> str:
        """The path of a UNIX socket of this machine; "" for none."""
        return "" if self.ssh else self.path

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.ssh:
            user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
            return f"ssh://{user}{host}{port}{self.path}"
        if self.path:
            return f"unix://{self.path}"
        return f"tcp://{host}:{self.port}"


def parse_engine_url(url: str, tls: TlsMaterial | None = None) -> EngineAddress:
    """Return the address in `url`, which has one of the forms of `DOCKER_HOST`.  Raises `UsageError` for other URLs.

    `tls` is used for TCP, and ignored for other addresses.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(_complaint(url)) from error
    extra = parts.query or parts.fragment
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/") and not extra:
        return EngineAddress(path=parts.path)
    if parts.scheme == "ssh" and host and not extra and parts.password is None and port != 0:
        user = unquote(parts.username or "")
        # They become words of ssh's command line, which must not look like options.
        if not host.startswith("-") and not user.startswith("-"):
            return EngineAddress(host=host, port=port or 0, ssh=True, user=user, path=parts.path.rstrip("/"))
    bare = parts.username is None and parts.path in ("", "/") and not extra
    if parts.scheme in ("tcp", "http", "https") and host and bare and port != 0:
        if parts.scheme == "https" and tls is None:
            tls = TlsMaterial()
        return EngineAddress(host=host, port=port or (_TLS_PORT if tls else _TCP_PORT), tls=tls)
    raise UsageError(_complaint(url))


def _complaint(url: str) -> str:
    """Return the error text for an invalid `url`, without its password, because errors are logged."""
    return f"not the address of an engine: {_PASSWORD.sub(':...@', url)!r}; {_USAGE}"
