"""Interfaces of the container engine's API."""

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


class IEngine(Protocol):
    """A container engine, by its Engine API.

    All of it raises `EngineUnavailable` when the engine cannot be reached and `EngineError` for an answer
    that makes no sense.  A lost engine is found again at the next call.
    """

    async def info(self) -> EngineInfo:
        """What engine this is.  Asked once per connection to it and then remembered until it was lost."""

    async def inspect(self, name: str) -> EngineImage:
        """The image by reference or ID, as it is: the engine is asked after the call.  Raises `ImageNotInEngine`."""

    async def pull(self, name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        """Let the engine pull `name` (a reference with tag or digest).

        `registry_auth` is the value of `X-Registry-Auth`, "" for none.  Returns when the image is there.
        Raises `ManifestUnknown`, or a `Refused` of the right kind with the engine's own words.
        Cancelling makes the engine stop the pull.
        """

    async def distribution(self, name: str, registry_auth: str) -> Descriptor:
        """What the image's own registry says `name` is: the engine asks it.

        Raises `ManifestUnknown`, or a `Refused`, as `pull` does.
        """

    async def platforms(self, name: str, registry_auth: str) -> Sequence[Platform]:
        """For which platforms the image's own registry has `name`; raises as `distribution` does."""

    async def save(self, image: Digest) -> IByteStream:
        """The archive stream of `GET /images/get` for an image ID.  Raises `ImageNotInEngine`."""


class IEngineRequests(Protocol):
    """Any request to the engine, for what `IEngine` has no word for."""

    async def info(self) -> EngineInfo:
        """As `IEngine.info`."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | IBodyProducer | None = None,
        versioned: bool = True,
        patience: float | None = None,
    ) -> IResponse:
        """The answer's head, of a status below 400.  Its body is for `body` to read or close.

        `path` is percent-encoded.  Raises `EngineError` with the status and the engine's words, `EngineUnavailable`.
        """

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        """The body of an answer; `what` it is completes "the connection was lost in the middle of ...".

        `silence` is how long, in seconds, it may say nothing (default: the engine's limit).
        """


class IImageNames(Protocol):
    """Which images the engine has, by name."""

    async def names(self) -> Sequence[tuple[Repository, Tag]]:
        """Every name of every image.  A bare name is given as the engine spells it, and no registry is made up.

        Raises `EngineError`.
        """


class IImageEvents(Protocol):
    """What happens to the engine's images."""

    async def follow(self, heard: Callable[[str], None]) -> None:
        """Tell of every name that an image is given, as the engine writes it, until the engine ends it.

        `heard` is called with "" when an image of any name may have come: at the beginning, too, when it is sure that
        what comes later will be told.  Raises `EngineUnavailable` when the connection is lost, or when nothing was
        told for long, and `EngineError` when the engine refuses.  Cancelling ends it.
        """
