"""A pull that changes nothing: the daemon's own `Pull`, whose collaborators tell what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IResponse

from k3dreg.config.settings import Config
from k3dreg.docker.image import EngineImage, EngineInfo, ImageStore, PullProgress
from k3dreg.docker.interfaces import IEngine
from k3dreg.formats.basic_auth import Credentials, registry_auth
from k3dreg.formats.text import size
from k3dreg.images.content_map import ContentMap, in_memory
from k3dreg.images.repair import Repair, broken_children
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, EngineError, ImageNotInEngine, K3dregError
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.engine_content import EngineContent
from k3dreg.registry.one_remote import OneRemote
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.pull import Pull
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.pull_in_progress import PullInProgress
from k3dreg.registry.pushed_lookup import PushedLookup
from k3dreg.registry.refresh import Refresh
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions
from k3dreg.registry.tag_records import TagRecords
from k3dreg.reporting.trace import Trace
from k3dreg.store.blob_files import blob_path
from k3dreg.store.interfaces import IPushedReader
from k3dreg.streaming.content import IBlob, IByteStream
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.origin import ICredentialSource, ITagDigests
from k3dreg.upstream.origin_fallback import OriginFallback

# Called with a sentence for the user.
Tell = Callable[[str], object]

# Seconds that no pull takes, so that the registry is not asked a second time because of a slow one.
_NEVER = 86400.0


class WouldServe(Exception):
    """Ends a dry pull where the daemon would pull, repair, fetch or read an image for the node.

    Its text says what the daemon would do.  It is no `K3dregError`, so that nothing on the way takes it for a failure.
    """


def make_dry_pull(
    config: Config,
    engine: IEngine,
    names: OwnNames,
    credentials: ICredentialSource,
    pushed: IPushedReader,
    tags: TagRecords,
    digests: ITagDigests,
    permitted: PermittedRegistries,
    workers: Workers,
    clock: IReactorTime,
    tell: Tell,
) -> Pull:
    """Return the `Pull` of a daemon with these settings, as it is after a start without its content map.

    So a digest that only an image of the classic store has is unknown to it until that image was asked for by a tag.

    Its `manifest` raises `WouldServe` if a node would get an image of the engine's or of a registry.  The engine asks
    registries, but pulls, builds and loads nothing.  `digests` is asked for `--refresh`.  `tell` is called with each
    thing that the `Pull` finds out.
    """
    told = _ToldEngine(engine, tell)
    known = _ToldCredentials(credentials, tell)
    blobs = _Blobs(config.state_dir / "blobs")
    source = _Unread()
    content_map = ContentMap(in_memory(), workers)
    content = EngineContent([source], blobs, content_map)
    resolver = Resolver(told, clock, names, may_ask=permitted.check, is_known=permitted.is_known)
    for_pulls = PullCredentials(known)
    questions = TagQuestions(tags, digests, told, for_pulls, names, clock, permitted.check)
    refresh = Refresh(questions, resolver, for_pulls, clock, tell)
    refresh.change(config.refresh)
    lookup = PushedLookup(pushed, blobs, names, content_map.knows)
    repairer = _Origin(told, "k3dreg repairs it, and then the node gets it")
    origin = _Origin(told, "k3dreg fetches it from there (--origin-fallback), and then the node gets it")
    return Pull(
        lookup,
        names,
        OneRemote(config.remote.only, names, lookup.has_repository),
        resolver,
        for_pulls,
        PullInProgress(told, source, resolver.is_pulling, for_pulls.registry_auth, clock, _NEVER),
        content,
        Repair(told, repairer, known, (), blobs, clock, permitted.check),
        OriginFallback(origin, known, clock, names.is_own, permitted.check),
        config.origin_fallback,
        refresh=refresh,
    )


@frozen
class _ToldEngine:
    """An engine that tells what it answers, and asks an image's registry instead of pulling.  Implements `IEngine`."""

    _engine: IEngine
    _tell: Tell

    async def info(self) -> EngineInfo:
        info = await self._engine.info()
        runs = "" if info.platform is None else f", on {info.platform}"
        self._tell(f"the engine is {info.version}, {info.store.value} image store{runs}")
        return info

    async def inspect(self, name: str) -> EngineImage:
        try:
            image = await self._engine.inspect(name)
        except ImageNotInEngine:
            self._tell(f"the engine has no {name}")
            raise
        built = "" if image.platform is None else f", for {image.platform}"
        self._tell(f"the engine has {name}: image {image.id}, {size(image.size)}{built}")
        for child in image.children:
            if child.kind == "image":
                here = "here" if child.available else "not here"
                self._tell(f"{child.descriptor.platform or 'a manifest'} of it is {here}")
        if broken_children(image):
            self._tell("Docker has lost blobs of it (moby#49473)")
        return image

    async def ask_registry(self, name: str, registry_auth: str) -> None:
        """Let the engine ask the image's registry, if it can.  Raises as `distribution` does."""
        if (await self._engine.info()).store is ImageStore.PODMAN:
            self._tell(f"its registry cannot be asked for {name} without a pull: Podman has no request for it")
        else:
            await self.distribution(name, registry_auth)

    async def pull(self, name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        await self.ask_registry(name, registry_auth)
        raise WouldServe("Docker pulls it, and then the node gets it")

    async def distribution(self, name: str, registry_auth: str) -> Descriptor:
        registry = name.partition("/")[0]
        try:
            descriptor = await self._engine.distribution(name, registry_auth)
        except K3dregError as error:
            self._tell(f"{registry} does not give {name}: {error.explained}")
            raise
        self._tell(f"{registry} has it: {descriptor.digest}")
        return descriptor

    async def platforms(self, name: str, registry_auth: str) -> Sequence[Platform]:
        platforms = await self._engine.platforms(name, registry_auth)
        self._tell(f"its registry has it for {', '.join(map(str, platforms)) or 'no platform that it names'}")
        return platforms

    async def pulled_from(self, name: str) -> Sequence[str]:
        repositories = await self._engine.pulled_from(name)
        if repositories:
            self._tell(f"Docker got the image from {', '.join(repositories)}")
        return repositories

    async def save(self, image: Digest) -> IByteStream:
        raise EngineError("nothing is exported")

    async def request(self, method: str, path: str, **options: object) -> IResponse:
        raise EngineError("nothing is built")

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        raise EngineError("nothing is built")


@frozen
class _ToldCredentials:
    """Credentials of this host; tells whether there are some for a registry.  Implements `ICredentialSource`."""

    _host: ICredentialSource
    _tell: Tell

    async def credentials(self, registry: str) -> Credentials | None:
        found = await self._host.credentials(registry)
        self._told(registry, has=found is not None)
        return found

    async def registry_auth(self, registry: str) -> str:
        found = await self._host.registry_auth(registry)
        self._told(registry, has=bool(found))
        return found

    def refused(self, registry: str) -> None:
        self._host.refused(registry)

    def _told(self, registry: str, *, has: bool) -> None:
        self._tell(
            f"k3dreg has credentials for {registry}: DOCKER_AUTH_CONFIG's, config.json's, a helper's, or ECR's"
            if has
            else f"k3dreg has no credentials for {registry}: a node's (imagePullSecrets) would be used"
        )


@frozen
class _Origin:
    """An image's registry, asked through the engine in place of k3dreg's own client.  Implements `IOrigin`."""

    _engine: _ToldEngine
    _then: str

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> NoReturn:
        shown = "" if credentials is None else registry_auth(credentials, reference.repository.registry)
        await self._engine.ask_registry(str(reference), shown)
        raise WouldServe(self._then)

    async def blob(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> NoReturn:
        raise BlobUnknown(f"{digest} is not fetched")

    fetch = blob


@frozen
class _Blobs:
    """The blobs in a directory, of which nothing is read.  Implements `IHeldBlobs`."""

    _directory: Path

    def get(self, digest: Digest) -> None:
        return None

    def has(self, digest: Digest) -> bool:
        return blob_path(self._directory, digest).exists()

    def hold(self, digests: Iterable[Digest]) -> Callable[[], None]:
        return lambda: None


class _Unread:
    """A source in the place of those that read the engine's images.  Implements `IImageSource` and `ILooseContent`."""

    name = "dry"
    at_hand = True

    async def root(self, image: EngineImage, trace: Trace) -> NoReturn:
        if image.store is ImageStore.CONTAINERD:
            raise WouldServe(f"a node gets it by Docker's own digest, {image.id}")
        raise WouldServe("a node gets it, with a manifest that k3dreg makes: the engine keeps none")

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        raise BlobUnknown(f"{digest} is not read")

    async def loose(self, descriptor: Descriptor) -> None:
        return None
