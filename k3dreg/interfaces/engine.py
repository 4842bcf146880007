"""The container engine: its API, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import frozen
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import Attribute, Interface

from k3dreg.interfaces.content import IBlob, IByteStream, IPieceStream
from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.engine import EngineImage, EngineInfo, PullProgress
from k3dreg.model.platform import Platform
from k3dreg.model.reference import Repository, Tag


class IEngine(Interface):
    """A container engine, by its Engine API.

    All of it raises `EngineUnavailable` when the engine cannot be reached and `EngineError` for an answer
    that makes no sense.  A lost engine is found again at the next call.
    """

    async def info() -> EngineInfo:
        """What engine this is.  Asked once per connection to it and then remembered until it was lost."""

    async def inspect(name: str) -> EngineImage:
        """The image by reference or ID, as it is: the engine is asked after the call.  Raises `ImageNotInEngine`."""

    async def current(name: str) -> EngineImage:
        """As `inspect`: which image the name means is asked after the call.  What it lacks may be known from before."""

    async def pull(name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        """Let the engine pull `name` (a reference with tag or digest).

        `registry_auth` is the value of `X-Registry-Auth`, "" for none.  Returns when the image is there.
        Raises `ManifestUnknown`, or a `Refused` of the right kind with the engine's own words.
        Cancelling makes the engine stop the pull.
        """

    async def distribution(name: str, registry_auth: str) -> Descriptor:
        """What the image's own registry says `name` is: the engine asks it.

        Raises `ManifestUnknown`, or a `Refused`, as `pull` does.
        """

    async def platforms(name: str, registry_auth: str) -> Sequence[Platform]:
        """For which platforms the image's own registry has `name`; raises as `distribution` does."""

    async def save(image: Digest) -> IByteStream:
        """The archive stream of `GET /images/get` for an image ID.  Raises `ImageNotInEngine`."""


@frozen
class NamesVersion:
    """One state of all an engine's images and their names: what is equal is the same state.

    `since` is when it began, in seconds since the epoch by the clock of the engine's machine, which is this one's.
    """

    mark: tuple[int, ...]
    since: float


class INamesVersion(Interface):
    """Tells whether anything has changed in the engine, without asking it."""

    async def version() -> NamesVersion | None:
        """The state after the call; None where that cannot be told."""


class IEngineRequests(Interface):
    """Any request to the engine, for what `IEngine` has no word for."""

    async def info() -> EngineInfo:
        """As `IEngine.info`."""

    async def request(
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

    def body(response: IResponse, what: str, *, silence: float | None = None) -> IPieceStream:
        """The body of an answer; `what` it is completes "the connection was lost in the middle of ...".

        `silence` is how long, in seconds, it may say nothing (default: the engine's limit).
        """


class IImageNames(Interface):
    """Which images the engine has, by name."""

    async def names() -> Sequence[tuple[Repository, Tag]]:
        """Every name of every image.  A bare name is given as the engine spells it, and no registry is made up.

        Raises `EngineError`.
        """


class IImageEvents(Interface):
    """What happens to the engine's images."""

    async def follow(heard: Callable[[str], None]) -> None:
        """Tell of every name that an image is given, as the engine writes it, until the engine ends it.

        `heard` is called with "" when an image of any name may have come: at the beginning, too, when it is sure that
        what comes later will be told.  Raises `EngineUnavailable` when the connection is lost, or when nothing was
        told for long, and `EngineError` when the engine refuses.  Cancelling ends it.
        """


@frozen
class FileStat:
    """A file of the engine's host.  `size` in bytes; it means nothing for a directory."""

    size: int
    is_file: bool
    is_directory: bool


class IContentSink(Interface):
    """What asks for the contents of a layer's files, one after the other.  All of it is for worker threads."""

    wanted: bytes | None = Attribute("the file whose content comes next, as a path in the directory; None: no more")
    missing: int = Attribute("how many bytes of it are still to come")

    def room() -> memoryview:
        """Where the next bytes of the wanted file may be put: some, at most `missing`.  Until the next call of any."""

    def took(count: int) -> None:
        """So many bytes were put into the last `room`; at the last of the file `wanted` becomes another."""

    def add(data: bytes | memoryview) -> None:
        """The next bytes of the wanted file, at most `missing`, from elsewhere; then as `took`."""

    def flush() -> None:
        """Pass on what was collected.  Called before a worker thread is given back."""


class IEngineFiles(Interface):
    """Files of the engine's host, read only.

    Paths are absolute and those of the *engine's* host, wherever k3dreg runs.  All of it raises `FileAbsent` when
    there is no such file, `FilesUnreachable` when this way to the files is closed, and `EngineUnavailable`.
    """

    name: str = Attribute("one word, for logs")

    async def stat(path: str) -> FileStat:
        """What is there."""

    async def read(path: str, limit: int) -> bytes:
        """A small file, whole.  Raises `ContentError` if it has more than `limit` bytes."""

    async def blob(path: str, digest: Digest, size: int | None = None) -> IBlob:
        """The file as a blob.  It is not verified against `digest`, but a file that is not `size` long is refused.

        Raises `ContentError` for that.  If the file goes away or changes its length while it is sent, the sending
        fails; the last byte is then never sent.
        """

    async def fill(directory: str, sink: IContentSink, progress: Callable[[], None]) -> None:
        """Give `sink` the contents of all the files it wants, which are in `directory` or below.

        `progress` is called in the reactor's thread whenever some were given.  Symbolic links are never followed.
        Raises `ContentError` or `FileAbsent` when a file is not as long as it should be or not there, and what `sink`
        raises.  Cancelling waits for nothing; the sink may get some more bytes.
        """

    async def close() -> None:
        """Undo what was done on the engine's side for reading its files.  Logged, not raised, if that fails."""
