"""Get the engine's directories from the helper container, and find files in them."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineInfo
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.system import when_reachable
from k3dreg.engine_files.directories import EngineDirectory
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.oci.errors import EngineError, EngineUnavailable, FileAbsent, FilesUnreachable, K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.outcome import Outcome

log = make_logger()

# Seconds, from the start of an attempt, for which requests wait for its directories.  An attempt takes half of that,
# and the slower ways to the files need some tenths of a second to begin, too.
_WORTH_WAITING_FOR = 1.0
# Seconds until a failed attempt is repeated: at first, and at most.  Each failure doubles them.
_AGAIN, _LONGEST = 300.0, 86400.0

PassDirectories = Callable[[Sequence[tuple[str, ...]]], Awaitable[Mapping[str, Handle]]]


class PassedDirectories:
    """The engine's directories that a helper container has passed to this process (`EngineDirectories`).

    A helper container runs once, and again when another engine, or another image store, answers.  The owner calls
    `close` in the end.
    """

    def __init__(
        self,
        engine: IEngineRequests,
        pass_directories: PassDirectories,
        clock: IReactorTime,
        wanted: Callable[[EngineInfo], tuple[tuple[str, ...], ...]],
        otherwise: IEngineFiles,
    ) -> None:
        """`pass_directories`: see `HelperContainer`.  It is called with the directories that `wanted` returns.

        It is not called when `otherwise` can read the first of these directories.
        """
        self._engine = engine
        self._pass_directories = pass_directories
        self._clock = clock
        self._wanted = wanted
        self._otherwise = otherwise
        self._known: tuple[str, tuple[tuple[str, ...], ...]] | None = None
        self._handles: Mapping[str, Handle] = {}
        self._attempt: Outcome[None] = Outcome()
        self._attempt.succeed(None)  # set means that no attempt is running
        self._began = 0.0
        self._again_at = 0.0
        self._pause = _AGAIN
        self._complaint = ""
        self._closed = False

    async def begin(self) -> None:
        """Start the first attempt and wait for its end, so that the first pull finds the directories.

        Waits for an engine that cannot be reached.  Cancelling stops the waiting, and not the attempt.
        """
        with contextlib.suppress(EngineError):  # the next request for a file tries again
            self._ensure(await when_reachable(self._engine.info, self._clock))
            await self._attempt.wait()

    async def locate(self, path: str) -> EngineDirectory:
        """Return where this process finds `path`: see `EngineDirectories`.

        Waits up to `_WORTH_WAITING_FOR` seconds for an attempt that is running.
        """
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
        """Close the directories, after waiting for an attempt that is running (some tenths of a second).

        Cancelling the attempt could leave a container: the engine creates it even if its client has disconnected, and
        nothing would then remove it.
        """
        self._closed = True
        await self._attempt.wait()
        self._close_handles()

    def _ensure(self, info: EngineInfo) -> None:
        """Start an attempt if the engine or its store has changed, or if a failed attempt is to be repeated now."""
        now = self._clock.seconds()
        wanted = (info.id, self._wanted(info))
        if wanted == self._known and (self._handles or not self._attempt.is_set or now < self._again_at):
            return
        if self._closed or not self._attempt.is_set:
            return  # an attempt for the previous engine is still running; the next request comes back here
        self._pause = min(2 * self._pause, _LONGEST) if wanted == self._known else _AGAIN
        self._known = wanted
        self._close_handles()
        self._began, self._again_at = now, now + self._pause
        self._attempt = Outcome()
        Deferred.fromCoroutine(self._try(wanted[1], self._attempt))

    def _close_handles(self) -> None:
        """Close the directories.  A worker thread that uses one finishes first: see `Handle.close`."""
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
            self._known = None  # so that the next request starts another attempt
            log.debug("no helper container can pass Docker's directories: {error}", error=error)
        except K3dregError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.info("Docker's files are read more slowly than they could be: {error}", error=error)
        except Exception:  # noqa: BLE001  (requests that wait have to go on, whatever the error)
            log.failure("getting Docker's directories from a helper container failed")
        finally:
            attempt.succeed(None)

    async def _is_there_otherwise(self, directory: str) -> bool:
        try:
            return (await self._otherwise.stat(directory)).is_directory
        except K3dregError:
            return False
