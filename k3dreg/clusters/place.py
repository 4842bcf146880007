"""Where k3dreg is, as seen from a cluster: checked once, so that all of it can be written into a file as it is."""

from __future__ import annotations

import re

from attrs import frozen

from k3dreg.oci.errors import UsageError

# Whatever is let in here needs no quoting in YAML, TOML or a shell.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH = re.compile(r"(/[A-Za-z0-9._@+-]+)+")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}")

CREATED, SEPARATE, HOST = "created", "separate", "host"

DEFAULT_PORT = 5000
# The port on the host of a k3dreg in a container: 5000 is taken on a Mac, by AirPlay.
DEFAULT_HOST_PORT = 5005
DEFAULT_SOCKET = "/var/run/docker.sock"
DEFAULT_IMAGE = "k3dreg:latest"


@frozen
class Place:
    """A k3dreg.  What does not fit raises `UsageError`, from whichever function makes one: see `place`.

    `mode` is one of `CREATED` (with the cluster), `SEPARATE` (a container of its own) and `HOST`.  `name` is what
    nodes call it and `port` where they reach it; `host_port` where programs on the host do.  `image` and `socket` (of
    Docker, on the host) are for those in containers.  `offline`: nodes are to ask nobody else.  `ca` is the file of
    the authority that its certificate is from, "" for plain HTTP; `auth` is whether nodes must log in.
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
        """`name:port`, as nodes call it."""
        return f"{self.name}:{self.port}"

    @property
    def url(self) -> str:
        """`http://name:port`, as nodes call it."""
        return f"{'https' if self.ca else 'http'}://{self.address}"

    @property
    def host_address(self) -> str:
        """As programs on the host call it."""
        return f"localhost:{self.host_port}"


def check_host(name: str) -> str:
    """A host's name or address.  Raises `UsageError`."""
    if not _HOST.fullmatch(name):
        raise UsageError(f"--name {name!r} is not the name of a host, such as k3d-registry.localhost")
    return name


def check_port(option: str, port: str) -> int:
    """Raises `UsageError`."""
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{option} {port!r} is not a port, such as 5000")
    return int(port)


def check_path(option: str, path: str) -> str:
    """A whole path, without the characters that would have to be quoted.  Raises `UsageError`."""
    if not _PATH.fullmatch(path):
        raise UsageError(f"{option} {path!r} is not a whole path of letters, digits, ._@+-: {DEFAULT_SOCKET}")
    return path


def check_image(name: str) -> str:
    """Raises `UsageError`."""
    if not _IMAGE.fullmatch(name):
        raise UsageError(f"--image {name!r} is not the name of an image, such as {DEFAULT_IMAGE}")
    return name
