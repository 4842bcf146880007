"""Interfaces of a container engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twisted.web.iweb import IBodyProducer, IResponse

from k3dreg.docker.image import EngineImage, EngineInfo, PullProgress
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Repository, Tag
from k3dreg.streaming.content import IByteStream


class IEngineRequests(Protocol):
    """A container engine: any request to it.  The functions of this package know which there are.

    Every method raises `EngineUnavailable` when the engine cannot be reached, and `EngineError` for an answer that
    makes no sense.  After a lost connection, the next call connects again.
    """

    async def info(self) -> EngineInfo:
        """Return the engine's description, which is remembered until the connection is lost."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | IBodyProducer | None = None,
        versioned: bool = True,
        max_wait: float | None = None,
    ) -> IResponse:
        """Send a request, and return the head of an answer with a status below 400.

        The caller must pass the answer to `body`, and read that or close it.  `path` begins with a slash and is
        percent-encoded; `versioned` puts the API version before it.  `max_wait` is how long, in seconds, the head may
        take (default: the engine's limit).
        Raises `EngineError` with the status and the engine's message, or `EngineUnavailable`.
        """

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        """Return the body of an answer, which the caller must read to its end or close.

        `what` names it in errors: "the connection was lost in the middle of ...".  `silence` is how long, in seconds,
        the engine may send nothing while the caller reads (default: the engine's limit).
        """


class IEngine(IEngineRequests, Protocol):
    """A container engine, and what k3dreg asks it about images.  Its methods raise as those of `IEngineRequests`."""

    async def inspect(self, name: str) -> EngineImage:
        """Return the image by reference or ID, from a request that is sent after this call and not from a cache.

        Raises `ImageNotInEngine`.
        """

    async def pull(self, name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        """Let the engine pull `name` (a reference with tag or digest), and return when it has the image.

        `registry_auth` is the value of `X-Registry-Auth`, "" for none.  `progress` is called for each message.
        Raises `ManifestUnknown`, or a subclass of `Refused` with the engine's own message.
        Cancelling makes the engine stop the pull.
        """

    async def distribution(self, name: str, registry_auth: str) -> Descriptor:
        """Let the engine ask the image's own registry, and return the descriptor that it has for `name`.

        Raises `ManifestUnknown` or a `Refused`, as `pull` does.
        """

    async def platforms(self, name: str, registry_auth: str) -> Sequence[Platform]:
        """Let the engine ask the image's own registry, and return the platforms for which it has `name`.

        Raises as `distribution` does.
        """

    async def pulled_from(self, name: str) -> Sequence[str]:
        """Return the repositories from which the engine says that it got the image `name`, without their ports.

        Docker 29.2 and later with the containerd store tell (API 1.53, `Identity`).  Empty for other engines, and for
        an image that was built here.  Raises `ImageNotInEngine`.
        """

    async def save(self, image: Digest) -> IByteStream:
        """Return the archive stream of `GET /images/get` for an image ID.  The caller reads it to its end or closes it.

        Raises `ImageNotInEngine`.
        """


class IImageNames(Protocol):
    """The names of the engine's images."""

    async def names(self) -> Sequence[tuple[Repository, Tag]]:
        """Return every name of every image.

        A name without a registry stays as the engine spells it.  Raises `EngineError`.
        """
