"""Whether an engine's images have changed, by the file in which the engine itself has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.docker.engine import IEngineRequests
from k3dreg.docker.image import EngineInfo
from k3dreg.engine_files.engine_files import NamesVersion
from k3dreg.engine_files.helper_objects import image_of_nothing
from k3dreg.engine_files.layout import name_databases
from k3dreg.engine_files.local_files import LocalFiles
from k3dreg.oci.errors import EngineError, K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.single_flight import FreshFlight

log = make_logger()

# Seconds after which a disk that does not answer holds up nobody else.
_PATIENCE = 5.0
# Seconds after which the database is looked for, once somebody wants to know, and looked for again.  What that costs
# the engine, a first pull should not have to share a machine with.
_LATER, _AGAIN = 5.0, 30.0

_FOR_EVER = 1e9
# The repository of the images of made-up names.
_PROBE = "k3dreg-probe"

Database = tuple[LocalFiles, str]


class ChangeDetection:
    """See `INamesVersion`.  It takes some 0.1 ms, where the engine takes from 5 to 20 to say what an image is.

    Which database is the engine's is proved, once for each time that the engine runs: another containerd may run on the
    same machine, and what is at the engine's path here may be another machine's.  The engine is given an empty image of
    a name that was made up for it, the name is looked for, and the image is removed.  That the engine still runs is
    known by a connection that stands all the time.
    """

    def __init__(self, engine: IEngineRequests, ways: Sequence[LocalFiles], clock: IReactorTime, owner: str) -> None:
        """`ways` to the engine's files; `owner` as of `ReaderContainers`."""
        self._engine = engine
        self._ways = ways
        self._clock = clock
        self._owner = owner
        self._looks: FreshFlight[str, NamesVersion | None] = FreshFlight(clock, _PATIENCE)
        self._info: EngineInfo | None = None  # that of the connection for which this holds:
        self._found: Database | None = None
        self._watching: Deferred[None] | None = None
        self._proving: Deferred[None] | None = None
        self._again_at = 0.0
        self._later: IDelayedCall | None = None
        self._closed = False

    async def version(self) -> NamesVersion | None:
        """See `INamesVersion`.  Raises `EngineUnavailable`."""
        info = await self._engine.info()
        if info is not self._info and not self._closed:
            self._give_up()
            self._info, self._again_at = info, self._clock.seconds() + _LATER
            self._later = self._clock.callLater(_LATER, self._find, info)
        if self._found is None:
            self._find(info)
            return None
        files, path = found = self._found
        version = await self._looks.ask(path, lambda: _version(files, path))
        if self._found is not found:
            return None
        if version is None:  # its owner has ended; whose it will be is to be proved again
            self._give_up()
        return version

    async def close(self) -> None:
        """Stop looking at it."""
        self._closed = True
        watching = self._watching
        self._give_up()
        if watching is not None:
            await watching
        if self._proving is not None:
            await self._proving
        await self._looks.shutdown()

    def _give_up(self) -> None:
        self._found = None
        if self._later is not None and self._later.active():
            self._later.cancel()
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    def _find(self, info: EngineInfo) -> None:
        """See to it that it is looked for; nobody waits for that."""
        if self._closed or self._clock.seconds() < self._again_at:
            return
        if self._watching is None or self._watching.called:
            self._again_at = self._clock.seconds() + _AGAIN
            self._watching = Deferred.fromCoroutine(self._watch(info))

    async def _watch(self, info: EngineInfo) -> None:
        """Look for it, and have it until the engine ends, which may then start with another store."""
        try:
            candidates = [
                (files, path)
                for files, path in product(self._ways, name_databases(info))
                if await _version(files, path) is not None
            ]
            if candidates:
                await self._have(candidates)
        except CancelledError:
            pass
        except EngineError as error:
            log.debug("which database of names is the engine's is not known: {error}", error=error)
        except Exception:  # noqa: BLE001  (it is done without)
            log.failure("looking for the engine's database of names failed")

    async def _have(self, candidates: Sequence[Database]) -> None:
        # Of a kind of events that hardly ever happens: what counts is that the connection stands.
        filters = {"filters": '{"type": ["daemon"]}'}
        response = await self._engine.request("GET", "/events", params=filters)
        witness = self._engine.body(response, "the engine's events", silence=_FOR_EVER)
        found = None
        try:
            found = self._found = await self._prove(candidates).wait()
            while found is not None and await witness.read():
                pass
        finally:
            witness.close()
            if self._found is found:
                self._found = None

    def _prove(self, candidates: Sequence[Database]) -> Outcome[Database | None]:
        """Whoever waits for it may be cancelled: it goes on, for the image has to be removed."""
        proved: Outcome[Database | None] = Outcome()
        proving = Deferred.fromCoroutine(self._proved(candidates))
        self._proving = proving.addCallbacks(proved.succeed, lambda failure: proved.fail(failure.value))
        return proved

    async def _proved(self, candidates: Sequence[Database]) -> Database | None:
        async with image_of_nothing(self._engine, _PROBE, "probe", self._owner) as name:
            for files, path in candidates:
                if await files.contains(path, name.encode()):
                    log.debug("changes of names are seen in {path} ({files})", path=path, files=files.name)
                    return files, path
        return None


async def _version(files: LocalFiles, path: str) -> NamesVersion | None:
    try:
        return await files.version(path)
    except K3dregError:
        return None
