"""Resolves references to images in the engine, and lets the engine pull those that it lacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage, ImageStore, PullProgress
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.errors import ImageNotInEngine, K3dregError, ManifestUnknown, NotFound, Refused, UpstreamFailed
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.other_platform import OtherPlatforms
from k3dreg.registry.own_names import OwnNames
from k3dreg.reporting.activity import Activity, Progress
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver, observed
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.negative_cache import NegativeCache
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.upstream.origin import MayAsk, every_registry

log = make_logger()

# Seconds between two log lines about a pull that is under way.
_REPORT_EVERY = 5.0
# Seconds for which digests of a repository are refused after its registry refused a pull.  A node whose pull by tag
# failed here goes to its next host, and then requests every digest that it learned there here first.  These requests
# must not start a pull each.  A minute covers such a node's pull; a pull by tag is tried again sooner.
_FAILED_FOR = 60.0

_DIGEST_ADVICE = {
    ImageStore.CLASSIC: (
        "Docker's classic image store keeps no registry manifests: switch it to the containerd image store "
        '("features": {"containerd-snapshotter": true} in daemon.json) or refer to the image by tag'
    ),
    ImageStore.PODMAN: (
        "Podman does not keep an image as its registry had it: refer to the image by tag, or let k3dreg fetch it from "
        "there (--origin-fallback)"
    ),
}
_OWN_NAME_ADVICE = "for an image of another registry, name that registry in the request: ?ns=docker.io"


def digest_advice(store: ImageStore) -> str:
    """Return advice for an engine with this store, which cannot give an image by its registry's digest."""
    return _DIGEST_ADVICE.get(store, "")


@frozen
class _Pulled:
    """What the engine has after a pull, and the seconds that the pull took."""

    image: EngineImage
    seconds: float


class Resolver:
    """Asks the engine which image a reference names, and lets it pull an image that it lacks.

    Requests for the same reference with the same credentials share one pull.  Call `shutdown` at the end.
    """

    def __init__(
        self,
        engine: IEngine,
        clock: IReactorTime,
        names: OwnNames | None = None,
        observer: IObserver = NULL_OBSERVER,
        may_ask: MayAsk = every_registry,
        is_known: Callable[[str], Awaitable[bool]] | None = None,
        pulled: Callable[[Reference, EngineImage], Awaitable[None]] | None = None,
    ) -> None:
        """`names` are this registry's own; `observer` is told of pulls.

        `may_ask` is called before a pull, and raises if the registry may not be asked.  `is_known` returns whether the
        user is known to use a registry; None counts as all.  Why any other registry does not give an image
        is only logged, or a client could find out what listens at any address.  `pulled` is called after a pull of a
        tag, with the image that the engine then has for it.
        """
        self._observer = observer
        self._names = OwnNames() if names is None else names
        self._engine = engine
        self._may_ask = may_ask
        self._is_known = is_known
        self._pulled = pulled
        self._clock = clock
        self._platforms = OtherPlatforms(engine, clock)
        self._pulls: SingleFlight[tuple[Reference, str], _Pulled] = SingleFlight()
        # The keys have the credentials, so that a refusal of one client's credentials is not given to another client.
        self._refused: NegativeCache[tuple[Reference, str]] = NegativeCache(clock)
        self._failed: NegativeCache[tuple[Repository, str]] = NegativeCache(clock)

    async def image(
        self, reference: Reference, registry_auth: Callable[[], Awaitable[str]], trace: Trace
    ) -> EngineImage:
        """Return the image that the reference names now; let the engine pull it if it lacks it.

        The engine is asked each time, so a rebuilt or re-tagged image is found at once.  `registry_auth` returns the
        credentials of a pull as `X-Registry-Auth`, "" for none.  For a reference without a registry, or with one of
        this registry's names, no pull is started: the engine would pull from here, and clients that push look first
        whether the tag exists.

        Raises what `may_ask`, `IEngine.inspect` and `IEngine.pull` raise.  A refusal is raised again for some seconds
        without a new pull.  Raises `ManifestUnknown` for an image of this registry that the engine lacks, for a digest
        that this engine's store can never give, and for a digest of a repository from which a pull has just failed.
        Cancelling leaves a pull running for the next request.
        """
        store = (await self._engine.info()).store
        for name in self._names.in_engine(reference, store):
            try:
                image = await self._engine.inspect(str(name))
            except ImageNotInEngine:
                continue
            await self._platforms.check(image, reference, self._asking(reference, registry_auth), trace)
            return image
        if self._names.is_own(reference.repository.registry):
            raise ManifestUnknown(f"Docker has no {reference}, and it was not pushed here", advice=_OWN_NAME_ADVICE)
        if reference.digest is not None and store is not ImageStore.CONTAINERD:
            raise ManifestUnknown(f"Docker cannot give {reference}", advice=digest_advice(store))
        await self._may_ask(str(reference.repository.registry))
        auth = await registry_auth()
        try:
            self._refused.check((reference, auth))
            if reference.digest is not None:
                self._failed.check((reference.repository, auth))
            pulled = await self._pulls.join((reference, auth), lambda: self._pull(reference, auth))
        except (NotFound, UpstreamFailed) as error:
            raise await self._for_client(error, reference) from error
        trace.step(f"pull {pulled.seconds:.1f}s")
        return pulled.image

    async def pull_newer(self, held: EngineImage, reference: Reference, auth: str, trace: Trace) -> EngineImage:
        """Let the engine pull a tag for which it has `held`, and return the image that it has then.

        Nothing is pulled if the tag means another image by now, which may have been built here.

        `auth` is `X-Registry-Auth`.  Raises what `IEngine.pull` raises, a refusal again for some seconds, and if the
        registry must not be asked.  Cancelling leaves the pull running.
        """
        await self._may_ask(str(reference.repository.registry))
        self._refused.check((reference, auth))
        pulled = await self._pulls.join((reference, auth), lambda: self._pull(reference, auth, held))
        trace.step(f"pull {pulled.seconds:.1f}s")
        return pulled.image

    def _asking(
        self, reference: Reference, registry_auth: Callable[[], Awaitable[str]]
    ) -> Callable[[], Awaitable[str]] | None:
        """Return a function for `OtherPlatforms.check` to ask the reference's registry; None for this registry."""
        registry = reference.repository.upstream.registry
        if self._names.is_own(reference.repository.registry) or self._names.is_own(registry):
            return None

        async def ask() -> str:
            await self._may_ask(str(registry))
            return await registry_auth()

        return ask

    async def _for_client(self, error: K3dregError, reference: Reference) -> K3dregError:
        """Return the error of a pull as the client may see it: without the cause, if the registry is not known."""
        if self._is_known is None or await self._is_known(str(reference.repository.registry)):
            return error
        log.warn("Docker could not pull {reference}: {error}", reference=reference, error=error)
        return ManifestUnknown(
            f"Docker could not pull {reference}",
            advice="k3dreg's log says why; to show it to clients, too, list the registry with --allow-registry",
        )

    def is_pulling(self, reference: Reference) -> bool:
        """Return whether the engine pulls the reference now, with any credentials."""
        pulls = self._pulls.keys()
        return any(pulled == reference for pulled, _ in pulls)

    def shutdown(self) -> None:
        """Cancel all pulls."""
        self._pulls.shutdown()

    def _tell_digests(self, key: tuple[Repository, str], error: K3dregError) -> None:
        """Refuse digests of the repository without a pull for some time, if the registry caused a pull's failure.

        The time is short for a registry that could not be reached, as it may be back within seconds.  A failure of the
        engine itself tells nothing about the registry, so it is not remembered.
        """
        if isinstance(error, UpstreamFailed):
            self._failed.remember(key, error)
        elif isinstance(error, Refused | NotFound):
            unknown = ManifestUnknown(f"Docker could not pull {key[0]} just now: {error}")
            self._failed.remember(key, unknown, _FAILED_FOR)

    async def _found(self, reference: Reference, held: EngineImage | None) -> EngineImage | None:
        """Return the image if the engine has another one than `held` now; None when the engine cannot be asked."""
        try:
            image = await self._engine.inspect(str(reference))
        except K3dregError:
            return None
        return None if held is not None and image.id == held.id else image

    async def _pull(self, reference: Reference, auth: str, held: EngineImage | None = None) -> _Pulled:
        """Let the engine pull the image, in place of `held` if that is given, and return what it has then.

        A pull that ends with an error and leaves a new image in the engine counts as a success: a containerd store
        keeps the content of what it cannot unpack.  It is not recorded as the registry's, since a user may have built
        it meanwhile.
        """
        started = reported = self._clock.seconds()
        if held is not None and (changed := await self._found(reference, held)) is not None:
            return _Pulled(changed, 0.0)
        latest = Progress()

        def report(progress: PullProgress) -> None:
            nonlocal reported, latest
            latest = Progress(progress.current, progress.total)
            now = self._clock.seconds()
            if now - reported >= _REPORT_EVERY:
                reported = now
                log.info(
                    "Docker is pulling {reference}: {done:.0f} of {total:.0f} MB, {seconds:.0f} s so far",
                    reference=reference,
                    done=progress.current / 1e6,
                    total=progress.total / 1e6,
                    seconds=now - started,
                )

        activity = Activity(
            "pull", str(reference), started, lambda: latest, lambda: self._pulls.waiters((reference, auth))
        )
        if held is None:
            log.info("Docker has no {reference}, so it pulls it", reference=reference)
        else:
            log.info("{reference} has moved in its registry, so Docker pulls it again", reference=reference)
        try:
            with observed(self._observer, activity, self._clock):
                await self._engine.pull(str(reference), auth, report)
        except K3dregError as error:
            stored = await self._found(reference, held)
            if stored is not None:
                # The engine fetched the content and could not unpack it, as with artifacts and signatures.  A node
                # needs no more than the content.
                log.warn("Docker stored {reference}, though its pull failed: {error}", reference=reference, error=error)
                return _Pulled(stored, self._clock.seconds() - started)
            self._refused.remember_answer((reference, auth), error)
            self._tell_digests((reference.repository, auth), error)
            raise
        self._failed.forget((reference.repository, auth))
        log.info(
            "Docker pulled {reference} in {seconds:.1f} s", reference=reference, seconds=self._clock.seconds() - started
        )
        try:
            image = await self._engine.inspect(str(reference))
        except ImageNotInEngine as error:
            raise ManifestUnknown(f"Docker pulled {reference}, but does not have it now") from error
        return await self._recorded(reference, image, started)

    async def _recorded(self, reference: Reference, image: EngineImage, started: float) -> _Pulled:
        seconds = self._clock.seconds() - started
        if self._pulled is not None and reference.digest is None:
            await self._pulled(reference, image)
        return _Pulled(image, seconds)
