"""The engine's directories that the helper container has passed to this process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker.image import EngineInfo
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.directories import EngineDirectory
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.oci.errors import EngineError, EngineUnavailable, FileAbsent, FilesUnreachable, K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.outcome import Outcome

log = make_logger()

# Seconds for which a request waits for directories that are being passed.  They are there in half of that, and the
# other ways to the files take some tenths of a second to begin with, too.
_WORTH_WAITING_FOR = 1.0
# Seconds after which a failed attempt is repeated, twice as long each time, but once a day.
_AGAIN, _LONGEST = 300.0, 86400.0
# Seconds until an engine that could not be asked at the start is asked again.
_ENGINE_AGAIN = 2.0

PassDirectories = Callable[[Sequence[tuple[str, ...]]], Awaitable[Mapping[str, Handle]]]


class PassedDirectories:
    """See `EngineDirectories`.  They are asked for once, and again when the engine has become another one."""

    def __init__(
        self,
        engine: IEngineRequests,
        pass_directories: PassDirectories,
        clock: IReactorTime,
        wanted: Callable[[EngineInfo], tuple[tuple[str, ...], ...]],
        otherwise: IEngineFiles,
    ) -> None:
        """`pass_directories` is that of `HelperContainer`, and `wanted` tells its argument.

        It is not called for directories that `otherwise` can read.
        """
        self._engine = engine
        self._pass_directories = pass_directories
        self._clock = clock
        self._wanted = wanted
        self._otherwise = otherwise
        self._known: tuple[str, tuple[tuple[str, ...], ...]] | None = None
        self._handles: Mapping[str, Handle] = {}
        self._attempt: Outcome[None] = Outcome()
        self._attempt.succeed(None)  # none is under way
        self._began = 0.0
        self._again_at = 0.0
        self._pause = _AGAIN
        self._complaint = ""
        self._closed = False

    async def begin(self) -> None:
        """Ask for the directories, so that they are there for the first pull.  Cancelling ends it."""
        while True:
            try:
                self._ensure(await self._engine.info())
                await self._attempt.wait()
            except EngineUnavailable:
                await deferLater(self._clock, _ENGINE_AGAIN)
            except EngineError:
                return  # the next request for a file tries again
            else:
                return

    async def locate(self, path: str) -> EngineDirectory:
        """See `EngineDirectories`.  Waits a moment for directories that are being passed."""
        self._ensure(await self._engine.info())
        if not self._attempt.is_set and self._clock.seconds() < self._began + _WORTH_WAITING_FOR:
            left = self._began + _WORTH_WAITING_FOR - self._clock.seconds()
            await self._attempt.wait().addTimeout(left, self._clock, lambda result, _: None)
        if not self._handles:
            raise FilesUnreachable("no helper container has passed Docker's directories to k3dreg")
        for directory, handle in self._handles.items():
            if path == directory or path.startswith(f"{directory}/"):
                return EngineDirectory(path[len(directory) + 1 :], handle)
        raise FileAbsent("the engine has no such file in the directories that k3dreg knows")

    async def close(self) -> None:
        """Close the directories, and leave nothing on the engine's side.

        An attempt that is under way is waited for, some tenths of a second.  The engine creates a container although
        its client has gone, and nothing would then remove it.
        """
        self._closed = True
        await self._attempt.wait()
        self._close_handles()

    def _ensure(self, info: EngineInfo) -> None:
        """Begin an attempt, if one is due."""
        now = self._clock.seconds()
        wanted = (info.id, self._wanted(info))
        if wanted == self._known and (self._handles or not self._attempt.is_set or now < self._again_at):
            return
        if self._closed or not self._attempt.is_set:
            return  # it is for what the engine was before: the next request finds that out
        self._pause = min(2 * self._pause, _LONGEST) if wanted == self._known else _AGAIN
        self._known = wanted
        self._close_handles()
        self._began, self._again_at = now, now + self._pause
        self._attempt = Outcome()
        Deferred.fromCoroutine(self._try(wanted[1], self._attempt))

    def _close_handles(self) -> None:
        """Close the directories; a use that is under way ends first."""
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle.close()

    async def _try(self, alternatives: Sequence[tuple[str, ...]], attempt: Outcome[None]) -> None:
        try:
            if alternatives and not await self._is_there_otherwise(alternatives[0][0]):
                self._handles = await self._pass_directories(alternatives)
                self._complaint = ""
                seconds = self._clock.seconds() - self._began
                log.info(
                    "Docker's files are read in place: a helper container passed their directories in {seconds:.1f} s",
                    seconds=seconds,
                )
        except EngineUnavailable as error:
            self._known = None  # the next request tries again
            log.debug("no helper container can pass Docker's directories: {error}", error=error)
        except K3dregError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.info("Docker's files are read more slowly than they could be: {error}", error=error)
        except Exception:  # noqa: BLE001  (what waits has to go on, whatever it is)
            log.failure("getting Docker's directories from a helper container failed")
        finally:
            attempt.succeed(None)

    async def _is_there_otherwise(self, directory: str) -> bool:
        try:
            return (await self._otherwise.stat(directory)).is_directory
        except K3dregError:
            return False
