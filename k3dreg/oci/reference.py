"""Names of images, as clients send them and as Docker spells them.

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
# The spec warns that hostname and path together are limited to 255 characters by many clients.
_LONGEST_PATH = 255
_LONGEST_HOST = 255

DOCKER_HUB = "docker.io"
# Docker folds only the first of these into docker.io (`registry-1.docker.io/x` is another name to it);
# containerd counts the last as docker.io's own host.  Nobody keeps different images under them.
_HUB_SPELLINGS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@frozen(order=True)
class Repository:
    """A repository: the registry it belongs to and its path there.

    `registry` is a host with an optional port, "docker.io" for Docker Hub, or None where the client did
    not say one (no `ns=`): then the name is taken as `docker images` on this machine would show it.
    """

    registry: str | None
    path: str

    @classmethod
    def parse(cls, path: str, registry: str | None = None) -> Repository:
        """From the path of a URL and the value of `ns=`.  Raises `InvalidName`."""
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
        """Return the repository that a request means by the path of its URL and `ns=`.

        A mirror's URL may repeat the registry in the path (`/v2/ghcr.io/team/app?ns=ghcr.io`: containerd with
        `override_path`, k3s with a `rewrite`), which says nothing new.  Without `ns`, a first part with a port names
        the registry, for a request that only reads: no repository of this registry can be called so.  Where the first
        part is a host without a port, the path may also be one of this registry's own: see `in_path`.

        Raises `InvalidName`.
        """
        first, slash, rest = path.partition("/")
        if ns is None:
            return cls.parse(rest, first) if reading and slash and ":" in first else cls.parse(path)
        return cls.parse(rest if slash and _spelled(first) == _spelled(ns) else path, ns)

    @property
    def in_path(self) -> Repository | None:
        """The repository of another registry that the path names by itself, as `ghcr.io/team/app`; else None.

        CRI-O, Podman and kaniko ask a mirror so, and Docker reads a name so (`distribution/reference`,
        `splitDockerDomain`; a path holds neither colons nor capitals).
        """
        first, slash, rest = self.path.partition("/")
        # An underscore may be in a path's first part and not in a host.
        if self.registry is None and slash and ("." in first or first == "localhost") and "_" not in first:
            return Repository.parse(rest, first)
        return None

    @property
    def upstream(self) -> Repository:
        """The same with its registry, as Docker reads a name without: `my-image` is `docker.io/library/my-image`."""
        if self.registry is not None:
            return self
        return self.in_path or Repository.parse(self.path, DOCKER_HUB)

    def __str__(self) -> str:
        """As a person writes it, and as every Docker engine takes it: `docker.io/library/nginx`, `my-image`."""
        return self.path if self.registry is None else f"{self.registry}/{self.path}"


def _spelled(host: str) -> str:
    """The one spelling of a registry host, for comparing."""
    return DOCKER_HUB if host.lower() in _HUB_SPELLINGS else host.lower()


@frozen(order=True)
class Tag:
    """A tag."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Raises `InvalidReference`."""
        if not _TAG.fullmatch(text):
            raise InvalidReference(f"not a tag: {text[:150]!r}")
        return cls(text)

    def __str__(self) -> str:
        return self.name


@frozen(order=True)
class Reference:
    """What a client asks a manifest by: a repository, and a tag or a digest in it."""

    repository: Repository
    target: Tag | Digest

    @classmethod
    def parse(cls, repository: Repository, text: str) -> Reference:
        """`text` is the last segment of `/v2/<name>/manifests/<reference>`.

        Raises `InvalidReference` or `InvalidDigest`.
        """
        return cls(repository, Digest.parse(text) if ":" in text else Tag.parse(text))

    @property
    def digest(self) -> Digest | None:
        """The digest, when it is asked for by digest."""
        return self.target if isinstance(self.target, Digest) else None

    def __str__(self) -> str:
        """`docker.io/library/nginx:1.27` or `…@sha256:…`; every Docker engine takes it in this form.

        The tag is always written: Docker may take a bare name of 4 to 64 hex digits for an image ID.
        """
        return f"{self.repository}{'@' if isinstance(self.target, Digest) else ':'}{self.target}"


def registry_host(host: str) -> str:
    """Return `host`, a registry's host and port, in lower case.

    Raises `InvalidName` unless it has a port: a name without one is Docker Hub's or another registry's.
    """
    registry = Repository.parse("x", host).registry
    if registry is None or not registry.rpartition(":")[2].isdecimal() or ":" not in registry:
        raise InvalidName(f"not a registry's host and port: {host[:150]!r}")
    return registry.lower()
