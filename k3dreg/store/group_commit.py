"""Write changes to the database: those that wait at the same time in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen
from twisted.internet.defer import Deferred

from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.database import Database, DatabaseConnection, Statement
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

log = make_logger()


def _nothing() -> None:
    pass


@frozen
class _Change:
    statements: Sequence[Statement]
    removing: bool
    ended: Callable[[], None]
    done: Outcome[list[int]] = field(factory=Outcome)


class GroupCommit:
    """Writes changes in the order of the calls.  Changes that are requested during a transaction share the next one."""

    def __init__(self, database: Database | DatabaseConnection, workers: Workers) -> None:
        self._database = database
        self._workers = workers
        self._waiting: list[_Change] = []
        self._writing = False
        self._idle: Outcome[None] | None = None
        self._closed = False

    async def write(
        self, statements: Sequence[Statement], *, removing: bool = False, ended: Callable[[], None] = _nothing
    ) -> list[int]:
        """Execute statements together, and return how many rows each of them has changed.

        When this returns, the change would survive a power failure.  `removing`: the change only removes, so it must be
        possible on a full disk.  `ended` is called when the change is written or has failed, before this returns.
        Raises `StoreFull` or `StoreError`; then nothing has changed.  Cancelling does not cancel the change.
        """
        if self._closed:
            ended()
            raise StoreError("k3dreg is stopping")
        change = _Change(statements, removing, ended)
        self._waiting.append(change)
        if not self._writing:
            self._writing = True
            writing = Deferred.fromCoroutine(self._write())
            writing.addErrback(lambda failure: log.failure("writing the database failed", failure=failure))
        # An Outcome, so that cancelling, when a client disconnects, does not cancel the writing.
        return await change.done.wait()

    async def close(self) -> None:
        """Refuse new changes, and wait for those under way."""
        self._closed = True
        if self._writing:
            self._idle = Outcome()
            await self._idle.wait()

    async def _write(self) -> None:
        while self._waiting:
            changes, self._waiting = self._waiting, []
            failed = await self._write_together(changes)
            # Write each on its own: one may be too large for a full disk, while another makes room on it.
            for change in changes if failed is not None else ():
                its_own = failed if len(changes) == 1 else await self._write_together([change])
                if its_own is not None:
                    change.ended()
                    change.done.fail(its_own)
        self._writing = False
        if self._idle is not None:
            self._idle.succeed(None)

    async def _write_together(self, changes: Sequence[_Change]) -> Exception | None:
        """Make all changes in one transaction.  Return the error for which none of them was made, or None."""
        statements = [statement for change in changes for statement in change.statements]
        removing = all(change.removing for change in changes)
        try:
            counts = iter(await self._workers.run(self._database.transact, statements, removing=removing))
        except Exception as error:  # noqa: BLE001  (the callers that wait get it, whatever it is)
            return error
        for change in changes:
            change.ended()
        for change in changes:
            change.done.succeed([next(counts) for _ in change.statements])
        return None
