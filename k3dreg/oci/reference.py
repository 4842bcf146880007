"""Names of images, as clients send them and as Docker writes them.

Grammar of repository paths and tags: distribution-spec 1.1, "Pulling manifests".
"""

from __future__ import annotations

import re

from attrs import frozen

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidName, InvalidReference

# distribution-spec 1.1: <name> MUST match this.
_PATH = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
# distribution-spec 1.1: <reference> as a tag MUST match this.
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
# A registry host: DNS name, IPv4, or IPv6 in brackets, with an optional port (`distribution/reference`, domain).
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]+\])"
    r"(?::[0-9]{1,5})?"
)
# distribution-spec 1.1 warns that many clients limit host and path together to 255 characters.
_LONGEST_PATH = 255
_LONGEST_HOST = 255

DOCKER_HUB = "docker.io"
# Docker replaces `index.docker.io` by docker.io, but not `registry-1.docker.io`, which is containerd's host for
# docker.io.  All of them are the same registry with the same images.
_HUB_SPELLINGS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@frozen(order=True)
class Repository:
    """A repository: the registry it belongs to and its path there.

    `registry` is a host with an optional port, "docker.io" for Docker Hub, or None if the client sent no `ns=`.  Then
    the path is a name as `docker images` on this machine shows it.
    """

    registry: str | None
    path: str

    @classmethod
    def parse(cls, path: str, registry: str | None = None) -> Repository:
        """Return the repository with this path and registry; Docker Hub's by its canonical name.

        Raises `InvalidName`.
        """
        if len(path) > _LONGEST_PATH or not _PATH.fullmatch(path):
            raise InvalidName(f"not a repository name: {path[:150]!r}")
        if registry is not None:
            if len(registry) > _LONGEST_HOST or not _HOST.fullmatch(registry):
                raise InvalidName(f"not a registry host: {registry[:150]!r}")
            if registry in _HUB_SPELLINGS:
                registry = DOCKER_HUB
                if "/" not in path:
                    path = f"library/{path}"
        return cls(registry, path)

    @classmethod
    def of_request(cls, path: str, ns: str | None = None, *, reading: bool = False) -> Repository:
        """Return the repository that a request names by the path of its URL and `ns=`.

        A mirror's URL may repeat the registry in the path (`/v2/ghcr.io/team/app?ns=ghcr.io`: containerd with
        `override_path`, k3s with a `rewrite`); the repetition is removed.  Without `ns`, a first part with a port is
        the registry, for a request that only reads: no repository's path can have a colon.  A first part that is a host
        without a port may also belong to a path of this registry's own: see `in_path`.

        Raises `InvalidName`.
        """
        first, slash, rest = path.partition("/")
        if ns is None:
            return cls.parse(rest, first) if reading and slash and ":" in first else cls.parse(path)
        return cls.parse(rest if slash and _spelled(first) == _spelled(ns) else path, ns)

    @classmethod
    def of_name(cls, name: str) -> Repository:
        """Return the repository of a name as Docker writes it: `nginx`, `127.0.0.1:5000/app`.  Raises `InvalidName`.

        Its registry is None for a name without a host, which Docker reads as Docker Hub's.
        """
        host, path = split_host(name)
        return cls.parse(path, host)

    @property
    def in_path(self) -> Repository | None:
        """The repository of another registry whose host begins the path, as in `ghcr.io/team/app`; None if none does.

        CRI-O, Podman and kaniko send such paths to a mirror.
        """
        if self.registry is not None:
            return None
        try:
            named = Repository.of_name(self.path)
        except InvalidName:  # the first part of a path may have an underscore, a host may not
            return None
        return None if named.registry is None else named

    @property
    def upstream(self) -> Repository:
        """The repository with the registry that Docker reads into it: `docker.io/library/my-image` for `my-image`."""
        if self.registry is not None:
            return self
        return self.in_path or Repository.parse(self.path, DOCKER_HUB)

    def __str__(self) -> str:
        """Return the name as every Docker engine accepts it: `docker.io/library/nginx`, `my-image`."""
        return self.path if self.registry is None else f"{self.registry}/{self.path}"


def _spelled(host: str) -> str:
    """Return the canonical spelling of a registry host, for comparing."""
    return DOCKER_HUB if host.lower() in _HUB_SPELLINGS else host.lower()


@frozen(order=True)
class Tag:
    """The name of a tag, valid by the distribution-spec's grammar if made by `parse`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Return the tag of this name.  Raises `InvalidReference`."""
        if not _TAG.fullmatch(text):
            raise InvalidReference(f"not a tag: {text[:150]!r}")
        return cls(text)

    def __str__(self) -> str:
        return self.name


@frozen(order=True)
class Reference:
    """The name by which a client requests a manifest: a repository, and a tag or a digest in it."""

    repository: Repository
    target: Tag | Digest

    @classmethod
    def parse(cls, repository: Repository, text: str) -> Reference:
        """Return the reference that `text`, the last segment of `/v2/<name>/manifests/<reference>`, is.

        Raises `InvalidReference` or `InvalidDigest`.
        """
        return cls(repository, Digest.parse(text) if ":" in text else Tag.parse(text))

    @property
    def digest(self) -> Digest | None:
        """The digest; None if the reference has a tag."""
        return self.target if isinstance(self.target, Digest) else None

    def __str__(self) -> str:
        """Return `docker.io/library/nginx:1.27` or `…@sha256:…`, as every Docker engine accepts it.

        The tag is always written: Docker may take a bare name of 4 to 64 hex digits for an image ID.
        """
        return f"{self.repository}{'@' if isinstance(self.target, Digest) else ':'}{self.target}"


def split_host(name: str) -> tuple[str | None, str]:
    """Return the registry's host in a name as Docker writes it, None if it has none, and the rest of the name.

    The rule is Docker's (`distribution/reference`, `splitDockerDomain`), without that for capitals.
    """
    first, slash, rest = name.partition("/")
    return (first, rest) if slash and ("." in first or ":" in first or first == "localhost") else (None, name)


def split_name(text: str) -> tuple[str, str | None, str | None]:
    """Return the name, tag and digest of `NAME[:TAG][@DIGEST]`, None for one that is missing.  Checks none of them."""
    name, at, digest = text.partition("@")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # no colon, or that of a port
        return name, None, digest if at else None
    return path, tag, digest if at else None


def registry_host(host: str) -> str:
    """Return `host`, a registry's host and port, in lower case.

    Raises `InvalidName` if it has no port: such a host is Docker Hub's or another registry's.
    """
    registry = Repository.parse("x", host).registry
    if registry is None or not registry.rpartition(":")[2].isdecimal() or ":" not in registry:
        raise InvalidName(f"not a registry's host and port: {host[:150]!r}")
    return registry.lower()
