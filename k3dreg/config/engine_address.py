"""Where an engine listens, as one value, and how people spell it."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from k3dreg.oci.errors import UsageError

_TCP_PORT = 2375  # the IANA port of Docker's plain API
_TLS_PORT = 2376  # and of the same with TLS
# From the first colon that is not the scheme's to the last @: wherever a URL is broken, the password is in between.
_PASSWORD = re.compile(r":(?!//).*@", re.DOTALL)
_USAGE = "use unix:///path/to/docker.sock, tcp://HOST[:PORT], http://HOST[:PORT] or ssh://[USER@]HOST[:PORT]"


@frozen
class TlsMaterial:
    """PEM texts for talking to an engine with TLS.

    `ca` is who signs the engine's certificate, b"" for the authorities that this machine trusts.  `certificate` and
    `key` are what this side shows, both b"" for nothing.
    """

    ca: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)


@frozen
class EngineAddress:
    """Where an engine listens: `path` of a UNIX socket, or `host` and `port`; the other is empty.

    `tls` is for TCP.  With `ssh`, `host` is any name that the ssh client knows, `port` 0 and `user` "" are what its
    settings say, and `path` is the engine's socket over there, "" for the usual one.
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
    """The address that `url` spells, in the forms of `DOCKER_HOST`.  Raises `UsageError`.

    `tls` is used where it can be: for TCP.
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
        # Words of a command line: none may look like an option.
        if not host.startswith("-") and not user.startswith("-"):
            return EngineAddress(host=host, port=port or 0, ssh=True, user=user, path=parts.path.rstrip("/"))
    bare = parts.username is None and parts.path in ("", "/") and not extra
    if parts.scheme in ("tcp", "http", "https") and host and bare and port != 0:
        if parts.scheme == "https" and tls is None:
            tls = TlsMaterial()
        return EngineAddress(host=host, port=port or (_TLS_PORT if tls else _TCP_PORT), tls=tls)
    raise UsageError(_complaint(url))


def _complaint(url: str) -> str:
    """Return what is wrong with `url`, without the password that it may hold: errors are logged and sent on."""
    return f"not the address of an engine: {_PASSWORD.sub(':...@', url)!r}; {_USAGE}"
