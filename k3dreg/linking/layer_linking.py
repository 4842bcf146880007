"""Link an image's layers into the node that pulls it, before it gets the manifest by which it would ask for them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from k3dreg.clusters.cluster_nodes import cluster_nodes, node_at
from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import EngineInfo
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.system import when_reachable
from k3dreg.engine_files.layout import chain_ids
from k3dreg.formats.text import counted
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linkers import ILinker, ILinkers
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, InvalidDigest, K3dregError
from k3dreg.oci.manifest import LARGEST_CONFIG, Manifest
from k3dreg.oci.reference import Repository
from k3dreg.reporting.activity import Activity, LinkedLayers, Progress
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver, observed
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

log = make_logger()

# Seconds before the client's time is over, for what remains to be done when linking stops: a layer that is being
# committed, and the answer itself.
_MARGIN = 2.0

ReadBlob = Callable[[Repository, Digest, Trace], Awaitable[IBlob]]


class LayerLinking:
    """Links the layers that Docker has unpacked into nodes.  It does nothing before `enable(True)`.

    An image is linked into a node once at a time, for all requests that want it.  Call `shutdown` at the end, and stop
    the `workers` after it: they run as many linkings at once as they have threads.
    """

    def __init__(
        self,
        engine: IEngineRequests,
        linkers: ILinkers,
        workers: Workers,
        clock: IReactorTime,
        pulls: Callable[[Node, Repository], None],
        observer: IObserver = NULL_OBSERVER,
    ) -> None:
        """`pulls` is called when a node pulls from a repository."""
        self._engine = engine
        self._linkers = linkers
        self._workers = workers
        self._clock = clock
        self._pulls = pulls
        self._observer = observer
        self._enabled = False
        self._stopping = False
        self._latest: ILinker | None = None
        self._preparing: Deferred[None] | None = None
        self._cleaning: Deferred[None] | None = None
        self._flights: SingleFlight[tuple[str, Digest], LinkingResult] = SingleFlight()

    def enable(self, wanted: bool) -> None:
        """Set whether layers are linked, from the next request on.

        A linker is made or ended in the background.  A new one first removes from the nodes what an earlier one left
        incomplete.
        """
        if self._preparing is not None and wanted == self._enabled:
            return
        self._enabled = wanted
        if self._preparing is not None:
            self._preparing.cancel()
        self._preparing = _begin(self._prepare() if wanted else self._end())

    async def before_answer(
        self, served: ServedManifest, repository: Repository, read_blob: ReadBlob, trace: Trace
    ) -> None:
        """Link the layers of a manifest that is about to be served to a node; add a step to `trace`.

        It returns before the node's time is over, whether all is linked or not: see `Trace.node_waits_until`.  A
        failure is logged and not raised, as the node pulls what was not linked.
        """
        until = trace.node_waits_until
        if not self._enabled or until is None or served.descriptor.media_type not in media_types.MANIFESTS:
            return
        seconds = until - _MARGIN - self._clock.seconds()
        if seconds <= 0:
            return
        subject = f"{repository} for {trace.client}"
        work = Deferred.fromCoroutine(self._before_answer(served, repository, read_blob, trace, seconds))
        try:
            await work.addTimeout(seconds, self._clock)
        except TimedOut:
            trace.not_linked = "it takes longer than the node waits"
            log.info("{subject}: linking takes longer than the node waits: it pulls", subject=subject)
        except (CannotLink, K3dregError) as error:
            trace.not_linked = str(error)
            log.info("{subject}: no layers are linked: {error}", subject=subject, error=error)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001  (the node pulls)
            trace.not_linked = "an error in k3dreg"
            log.failure("{subject}: linking failed", subject=subject)

    async def link(self, node: Node, repository: str, diff_ids: Sequence[Digest], seconds: float) -> LinkingResult:
        """Link the layers of these diffIDs into a node, and stop after `seconds`.  Raises `CannotLink`, `EngineError`.

        A call that finds the linking under way joins it, with the seconds of the first call.

        Cancelling does not stop the work, which another caller may wait for, too.
        """
        chain = chain_ids(diff_ids)
        if not chain:
            return LinkingResult()
        return await self._flights.join((node.id, chain[-1]), lambda: self._run(node, repository, chain, seconds))

    async def shutdown(self) -> None:
        """Let all work stop soon, and link nothing more."""
        self._stopping = True
        self._enabled = False
        for work in (self._preparing, self._cleaning):
            if work is not None:
                work.cancel()
        await self._flights.shutdown()
        with contextlib.suppress(EngineError):
            await self._linkers.close()

    async def _before_answer(
        self, served: ServedManifest, repository: Repository, read_blob: ReadBlob, trace: Trace, seconds: float
    ) -> None:
        began = self._clock.seconds()
        node = await node_at(self._engine, trace.client)
        if node is None:
            trace.not_linked = f"no node of k3d or kind in this Docker has the address {trace.client}"
            return
        self._pulls(node, repository)
        diff_ids = await self._diff_ids(served, repository, read_blob)
        done = await self.link(node, str(repository), diff_ids, seconds - (self._clock.seconds() - began))
        trace.linked = _seen(done, node)
        if done.layers:
            trace.step(told(done, node))
        if done.missing:
            trace.not_linked = f"Docker has not unpacked {counted(done.missing, 'layer')}"
            log.info("{repository} for {node}: {why}", repository=repository, node=node.name, why=trace.not_linked)

    async def _diff_ids(self, served: ServedManifest, repository: Repository, read_blob: ReadBlob) -> Sequence[Digest]:
        """Return the diffIDs of an image's layers, none if it is no image for a node."""
        descriptor = served.descriptor
        manifest = Manifest.parse(await (await served.open()).read(), descriptor.media_type)
        config = manifest.config
        if config is None or config.media_type not in _CONFIGS or config.size > LARGEST_CONFIG:
            return ()
        # With a trace of its own: the request's is about the manifest.
        data = await (await read_blob(repository, config.digest, Trace())).read()
        found = await self._workers.run(_parse_diff_ids, data)
        return found if len(found) == len(manifest.layers) else ()

    async def _run(self, node: Node, repository: str, chain: Sequence[Digest], seconds: float) -> LinkingResult:
        end = time.monotonic() + seconds

        def proceed() -> None:
            # Called in the worker thread.
            if self._stopping:
                raise CannotLink("k3dreg is stopping")
            if time.monotonic() > end:
                raise CannotLink(f"it takes longer than {seconds:.0f} s")

        done = LinkingResult()
        activity = Activity(
            "link", f"{repository} into {node.name}", self._clock.seconds(), progress=lambda: Progress(done.saved)
        )
        with observed(self._observer, activity, self._clock):
            info = await self._engine.info()
            linker = await self._linker(info)
            done = await self._workers.run(linker.link, info, node, repository, chain, proceed)
            activity.linked = _seen(done, node)
        return done

    async def _linker(self, info: EngineInfo) -> ILinker:
        """Return a linker, after letting a new one clean up in the background.  Raises `CannotLink`."""
        linker = await self._linkers.get(info)
        if not self._enabled:
            with contextlib.suppress(EngineError):
                await self._linkers.close()
            raise CannotLink("linking was turned off")
        if linker is not self._latest:
            self._latest = linker
            if self._cleaning is not None:
                self._cleaning.cancel()
            self._cleaning = _begin(self._clean_up(linker))
        return linker

    async def _prepare(self) -> None:
        """Make a linker before the first pull."""
        try:
            await self._linker(await when_reachable(self._engine.info, self._clock))
        except (CannotLink, EngineError) as error:
            log.info("no layers can be linked: {error}", error=error)

    async def _end(self) -> None:
        """End the linker, and remove helper containers that a killed k3dreg left."""
        try:
            await self._linkers.close()
            await when_reachable(self._linkers.remove_left, self._clock)
        except EngineError as error:
            log.info("a helper container that linked layers may still be there: {error}", error=error)

    async def _clean_up(self, linker: ILinker) -> None:
        try:
            nodes = await when_reachable(lambda: cluster_nodes(self._engine), self._clock)
        except K3dregError as error:
            log.info("the nodes are not known in which an earlier run may have left layers: {error}", error=error)
            return
        for node in nodes:
            try:
                await self._workers.run(linker.clean_up, node)
            except (CannotLink, K3dregError) as error:
                log.debug("{node} was not cleaned up: {error}", node=node.name, error=error)


def _begin(work: Coroutine[Deferred[object], object, None]) -> Deferred[None]:
    """Start work in the background, which may be cancelled."""
    working = Deferred.fromCoroutine(work)
    working.addErrback(lambda failure: failure.trap(CancelledError) and None)
    return working


_CONFIGS = frozenset({media_types.OCI_CONFIG, media_types.DOCKER_CONFIG})


def _seen(done: LinkingResult, node: Node) -> LinkedLayers:
    return LinkedLayers(node.name, done.layers, done.there, done.saved)


def told(done: LinkingResult, node: Node) -> str:
    """Return what was linked as text: `linked 6 layers, 26,390 files, 1.4 s, k3d-k3s-default-agent-0`."""
    return f"linked {counted(done.layers, 'layer')}, {done.files:,} files, {done.seconds:.1f} s, {node.name}"


def _parse_diff_ids(config: bytes) -> Sequence[Digest]:
    """Return `rootfs.diff_ids` of a config (image-spec 1.1, config.md); none if it has none."""
    try:
        return [Digest.parse(text) for text in json.loads(config)["rootfs"]["diff_ids"]]
    except (ValueError, KeyError, TypeError, RecursionError, InvalidDigest):
        return []
