"""A client of the container engine, by its Engine API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent

from k3dreg.docker.connection import Connection
from k3dreg.docker.image import EngineImage, EngineInfo, ImageStore, PullProgress
from k3dreg.docker.members import items, mapping, text
from k3dreg.docker.messages import PullTally, object_of, parse_image, parse_info, stream_error
from k3dreg.docker.refusals import refusal
from k3dreg.formats.json_stream import JsonObjects
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, EngineUnavailable, ImageNotInEngine, InvalidDigest, InvalidManifest
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import split_name
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.single_flight import FreshFlight

# Seconds without a byte after which a request fails.  A healthy engine was seen to be silent for a few seconds, while
# it committed a large layer; a slow disk may need many times that.
SILENCE = 120.0
# Seconds until the first byte of a save.  An engine with the classic store first writes the whole archive to a
# directory of its own (7 to 14 s were measured for 1.3 GB) and sends nothing meanwhile.  This is enough for some
# 300 GB.  An engine that dies closes the connection, which ends the wait.
PREPARATION = 3600.0
# The API version from which an inspection says where an image came from.  Engines refuse a version that they lack.
_TELLS_IDENTITY = "v1.53"
# The API version from which an image's inspection lists the children of its index (`manifests=1`).
_TELLS_CHILDREN = (1, 48)
# Seconds for which an inspection delays the next one of the same name, which all callers share that arrive meanwhile.
# An engine answers within milliseconds; the limit is for an answer that never comes, as on a connection that was cut
# silently.
_INSPECTION = 1.0
# How an engine refuses an invalid image name, by the status of its answer.  Docker 20.10 limits the length of registry
# and path together, later engines that of the path with Docker Hub's `library/`.
_NO_NAME: Mapping[int, Sequence[str]] = {
    400: ("invalid reference format", "must not be more than 255 characters"),
    500: ("parsing reference", "must not be more than 255 characters"),  # Podman
}


class EngineClient(Connection):
    """A client of one engine (`IEngine`).

    `silence` is how long, in seconds, the engine may send nothing.  `description` is for logs: the engine's URL, which
    no error contains, because clients see errors.
    """

    def __init__(
        self,
        agent: IAgent,
        clock: IReactorTime,
        *,
        base: str = "http://engine",
        silence: float = SILENCE,
        description: str,
    ) -> None:
        super().__init__(agent, clock, base=base, silence=silence)
        self._info: tuple[int, EngineInfo] | None = None
        self._inspections: FreshFlight[str, EngineImage] = FreshFlight(clock, _INSPECTION)
        self.description = description

    async def info(self) -> EngineInfo:
        """Return the engine's description, remembered until the connection is lost or another image store answers.

        Raises as `IEngine` says.
        """
        if self._info is None or self._info[0] != self.generation:
            generation = self.generation
            api = await self.api_version()
            told = object_of(await self.get_json("/info"), "/info")
            version = object_of(await self.get_json("/version"), "/version")
            self._info = (generation, parse_info(told, version, api))
        return self._info[1]

    async def inspect(self, name: str) -> EngineImage:
        """Return the image `name` as the engine has it now.

        Concurrent calls for one name share a request, which is never one that was sent before the call.
        Raises `ImageNotInEngine`, for an invalid name, too.
        """
        return await self._inspections.ask(name, lambda: self._inspect(name))

    def shutdown(self) -> Deferred[None]:
        """Cancel the running inspections and start no more; fire when they have ended."""
        return self._inspections.shutdown()

    async def _inspect(self, name: str) -> EngineImage:
        path = f"/images/{_path_of(name)}/json"
        info = await self.info()
        params = {"manifests": "1"} if info.api_version >= _TELLS_CHILDREN else {}
        try:
            answer = object_of(await self.get_json(path, params), "an inspection")
        except EngineError as error:
            if error.status == 404 or _is_of_a_name(error):
                raise ImageNotInEngine(f"Docker has no image {name}") from error
            raise
        if _is_of_other_store(answer, info):
            # The engine was restarted with its other image store, while k3dreg had no connection to lose.
            self._info = None
            info = await self.info()
        return parse_image(answer, info.store)

    async def pull(self, name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        """Let the engine pull `name`: see `IEngine.pull`.  Without tag and digest, pull `latest`."""
        repository, target = _split(name)
        try:
            response = await self.request(
                "POST",
                "/images/create",
                # Without a tag the engine would pull every tag of the repository.
                params={"fromImage": repository, "tag": target},
                headers={"X-Registry-Auth": registry_auth} if registry_auth else {},
            )
        except EngineUnavailable:
            raise
        except EngineError as error:
            if not error.status:
                raise
            raise refusal(error.status, str(error)) from error
        stream = self.body(response, f"Docker's pull of {name}")
        try:
            await _follow(stream, progress)
        finally:
            stream.close()

    async def distribution(self, name: str, registry_auth: str) -> Descriptor:
        """Return the descriptor that the image's registry has for `name`: see `IEngine.distribution`.

        Docker Hub counts the request as a pull.  Raises `EngineError` for Podman, which has no such request.
        """
        answer = await self._distribution(name, registry_auth)
        try:
            return Descriptor.from_json(answer.get("Descriptor"))
        except (InvalidManifest, InvalidDigest) as error:
            raise EngineError(f"the engine did not describe {name}") from error

    async def platforms(self, name: str, registry_auth: str) -> Sequence[Platform]:
        """Return the platforms for which the image's registry has `name`, by the same request as `distribution`."""
        told = (await self._distribution(name, registry_auth)).get("Platforms")
        return [Platform.from_json(one) for one in told if isinstance(one, dict)] if isinstance(told, list) else []

    async def _distribution(self, name: str, registry_auth: str) -> Mapping[str, Any]:
        if (await self.info()).store is ImageStore.PODMAN:
            raise EngineError(f"Podman does not say which digest {name} has in its registry")
        try:
            response = await self.request(
                "GET",
                f"/distribution/{_path_of(name)}/json",
                headers={"X-Registry-Auth": registry_auth} if registry_auth else {},
            )
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise refusal(error.status, str(error)) from error
        return object_of(await self.read_json(response), "a registry's answer")

    async def pulled_from(self, name: str) -> Sequence[str]:
        """Return the repositories from which the engine says that it got the image: see `IEngine.pulled_from`."""
        path = f"/{_TELLS_IDENTITY}/images/{_path_of(name)}/json"
        try:
            # Not with other inspections, as an engine may verify the image's signatures for it.
            response = await self.request("GET", path, versioned=False)
        except EngineError as error:
            if error.status == 400:  # the engine is older
                return ()
            if error.status == 404:
                raise ImageNotInEngine(f"Docker has no image {name}") from error
            raise
        identity = mapping(object_of(await self.read_json(response), "an inspection").get("Identity"))
        # `docker push` marks an image as `docker pull` does, but one that BuildKit made here is marked as built, too.
        if items(identity.get("Build")):
            return ()
        return [text(mapping(pull).get("Repository")) for pull in items(identity.get("Pull"))]

    async def save(self, image: Digest) -> IByteStream:
        """Return the archive of an image.  The engine appends errors after the first byte to the archive.

        See `formats/trailing_error`.  Raises `ImageNotInEngine`.
        """
        # An engine with the containerd store sends the first byte at once.
        max_wait = None if (await self.info()).store is ImageStore.CONTAINERD else PREPARATION
        try:
            response = await self.request("GET", "/images/get", params={"names": str(image)}, max_wait=max_wait)
        except EngineError as error:
            if error.status == 404:
                raise ImageNotInEngine(f"Docker has no image {image}") from error
            if error.status:
                # Engine 20.10 and Podman answer 500 for an image that they do not have.
                await self.inspect(str(image))
            raise
        return self.body(response, f"Docker's export of {image.algorithm}:{image.short}")


async def _follow(stream: IByteStream, progress: Callable[[PullProgress], None]) -> None:
    """Read a pull's progress stream to its end.  Raises what `refusal` returns for an error message in it."""
    objects, tally = JsonObjects(), PullTally()
    while data := await stream.read():
        for message in objects.feed(data):
            error = stream_error(message)
            if error is not None:
                raise refusal(0, error)
            state = tally.add(message)
            if state is not None:
                progress(state)
    objects.close()


def _path_of(name: str) -> str:
    """Return `name` quoted for a URL's path.  The engine's router takes its slashes, `:` and `@` unquoted.

    Raises `ImageNotInEngine` for a name that would lead to another path.
    """
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ImageNotInEngine(f"not the name of an image: {name[:150]!r}")
    return quote(name, safe="/:@")


def _is_of_a_name(error: EngineError) -> bool:
    """Return whether the engine refused an invalid image name: Docker with 400, Podman with 500."""
    return any(words in str(error) for words in _NO_NAME.get(error.status, ()))


def _split(name: str) -> tuple[str, str]:
    """Return the repository of a reference, and its digest, else its tag, else `latest`."""
    path, tag, digest = split_name(name)
    return path, digest or tag or "latest"


def _is_of_other_store(answer: Mapping[str, object], info: EngineInfo) -> bool:
    """Return whether an inspection comes from another image store than that of `info`."""
    graph = answer.get("GraphDriver")
    driver = graph.get("Name") if isinstance(graph, dict) else None
    if answer.get("Descriptor") and info.store is not ImageStore.CONTAINERD:
        return True
    return isinstance(driver, str) and bool(driver) and driver != info.driver
