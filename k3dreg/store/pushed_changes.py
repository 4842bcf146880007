"""Changes of what was pushed: written to the database first, and then made in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen
from twisted.internet.defer import Deferred

from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.database import Database, Statement
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

log = make_logger()


def _nothing() -> None:
    pass


@frozen
class Change:
    """Statements for the database, and the change in memory that follows.

    `apply` is called after the statements are on disk; `undo` if they cannot be written, for what the caller changed in
    memory before.  `removing`: the change only removes, so it must be possible on a full disk.
    """

    statements: Sequence[Statement]
    apply: Callable[[], None] = _nothing
    undo: Callable[[], None] = _nothing
    removing: bool = False
    done: Outcome[None] = field(factory=Outcome)


class PushedChanges:
    """Makes changes in the order of the calls.  Changes that wait are written in one transaction."""

    def __init__(self, database: Database, workers: Workers) -> None:
        self._database = database
        self._workers = workers
        self._waiting: list[Change] = []
        self._writing = False
        self._idle: Outcome[None] | None = None
        self._closed = False

    async def make(self, change: Change) -> None:
        """Make a change; return when it would survive a power failure and is made in memory.

        Raises `StoreFull` or `StoreError`; the change is then undone.  Cancelling does not cancel the change.
        """
        if self._closed:
            change.undo()
            raise StoreError("k3dreg is stopping")
        self._waiting.append(change)
        if not self._writing:
            self._writing = True
            writing = Deferred.fromCoroutine(self._write())
            writing.addErrback(
                lambda failure: log.failure("writing the list of what was pushed failed", failure=failure)
            )
        # An Outcome, so that cancelling, when a client disconnects, does not cancel the writing.
        await change.done.wait()

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
                    change.undo()
                    change.done.fail(its_own)
        self._writing = False
        if self._idle is not None:
            self._idle.succeed(None)

    async def _write_together(self, changes: Sequence[Change]) -> Exception | None:
        """Make all changes in one transaction.  Return the error for which none of them was made, or None."""
        statements = [statement for change in changes for statement in change.statements]
        removing = all(change.removing for change in changes)
        try:
            await self._workers.run(self._database.transact, statements, removing=removing)
        except Exception as error:  # noqa: BLE001  (the callers that wait get it, whatever it is)
            return error
        for change in changes:
            change.apply()
        for change in changes:
            change.done.succeed(None)
        return None
