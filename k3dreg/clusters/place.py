"""The place of k3dreg as seen from a cluster, with checks that allow its values to be written into files unquoted."""

from __future__ import annotations

import re

from attrs import frozen

from k3dreg.oci.errors import UsageError

# Text that these patterns match needs no quotes in YAML, TOML or a shell.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH = re.compile(r"(/[A-Za-z0-9._@+-]+)+")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}")

CREATED, SEPARATE, HOST = "created", "separate", "host"

DEFAULT_PORT = 5000
# The port, on the host, of a k3dreg in a container.  AirPlay uses 5000 on a Mac.
DEFAULT_HOST_PORT = 5005
DEFAULT_SOCKET = "/var/run/docker.sock"
DEFAULT_IMAGE = "k3dreg:latest"


@frozen
class Place:
    """The place of a k3dreg.  `place_for` makes one with defaults.

    It does not check its values.  The caller checks a user's texts with `check_host`, `check_port`, `check_path` and
    `check_image`.

    `mode` is `CREATED` (with the cluster), `SEPARATE` (in a container of its own) or `HOST`.  Nodes reach k3dreg by
    `name` and `port`, programs on the host by `host_port`.  `image`, and `socket` (Docker's, on the host), are for a
    k3dreg in a container.

    With `offline`, nodes ask no other registry.  `ca` is the file of the authority that issued k3dreg's certificate, ""
    for plain HTTP.  With `auth`, nodes must log in.
    """

    mode: str
    name: str
    port: int = DEFAULT_PORT
    host_port: int = DEFAULT_HOST_PORT
    image: str = DEFAULT_IMAGE
    socket: str = DEFAULT_SOCKET
    offline: bool = False
    ca: str = ""
    auth: bool = False

    @property
    def address(self) -> str:
        """The address for nodes: `name:port`."""
        return f"{self.name}:{self.port}"

    @property
    def url(self) -> str:
        """The URL for nodes: `http://name:port`, or `https` with a `ca`."""
        return f"{'https' if self.ca else 'http'}://{self.address}"

    @property
    def host_address(self) -> str:
        """The address for programs on the host."""
        return f"localhost:{self.host_port}"


def check_host(name: str) -> str:
    """Return `name` if it is a host's name or address.  Raises `UsageError` if not."""
    if not _HOST.fullmatch(name):
        raise UsageError(f"--name {name!r} is not the name of a host, such as k3d-registry.localhost")
    return name


def check_port(option: str, port: str) -> int:
    """Return `port` as a number from 1 to 65535.  Raises `UsageError` if it is none, which names `option`."""
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{option} {port!r} is not a port, such as 5000")
    return int(port)


def check_path(option: str, path: str) -> str:
    """Return `path` if it is absolute and needs no quotes.  Raises `UsageError` if not, which names `option`."""
    if not _PATH.fullmatch(path):
        raise UsageError(f"{option} {path!r} is not a whole path of letters, digits, ._@+-: {DEFAULT_SOCKET}")
    return path


def check_image(name: str) -> str:
    """Return `name` if it can be the name of an image and needs no quotes.  Raises `UsageError` if not."""
    if not _IMAGE.fullmatch(name):
        raise UsageError(f"--image {name!r} is not the name of an image, such as {DEFAULT_IMAGE}")
    return name
