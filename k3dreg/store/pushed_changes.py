"""Changes of what was pushed: written to the list first, and then made in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen
from twisted.internet.defer import Deferred

from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.pushed_database import PushedDatabase, Statement
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

log = make_logger()


def _nothing() -> None:
    pass


@frozen
class Change:
    """Something to be written, and then to be done in memory; `undo` is for what was done there before.

    `removing`: there is less afterwards.
    """

    statements: Sequence[Statement]
    apply: Callable[[], None] = _nothing
    undo: Callable[[], None] = _nothing
    removing: bool = False
    done: Outcome[None] = field(factory=Outcome)


class PushedChanges:
    """Makes changes, in the order in which they are asked for; those that wait go to the disk together."""

    def __init__(self, ledger: PushedDatabase, workers: Workers) -> None:
        self._ledger = ledger
        self._workers = workers
        self._waiting: list[Change] = []
        self._writing = False
        self._idle: Outcome[None] | None = None
        self._closed = False

    async def make(self, change: Change) -> None:
        """Returns when it is on disk for good, and made.  Raises `StoreFull` or `StoreError`; then it is undone.

        Cancelling gives up the answer, not the change.
        """
        if self._closed:
            change.undo()
            raise StoreError("k3dreg is stopping")
        self._waiting.append(change)
        if not self._writing:
            self._writing = True
            writing = Deferred.fromCoroutine(self._write())
            writing.addErrback(lambda failure: log.failure("writing what was pushed", failure=failure))
        # An Outcome, so that a client that leaves takes nothing but its own answer with it.
        await change.done.wait()

    async def close(self) -> None:
        """Wait for changes under way, take no more of them, and close the ledger."""
        self._closed = True
        if self._writing:
            self._idle = Outcome()
            await self._idle.wait()
        await self._workers.run(self._ledger.close)

    async def _write(self) -> None:
        while self._waiting:
            changes, self._waiting = self._waiting, []
            failed = await self._write_together(changes)
            # One may be too much for the disk, and another be what makes room on it.
            for change in changes if failed is not None else ():
                its_own = failed if len(changes) == 1 else await self._write_together([change])
                if its_own is not None:
                    change.undo()
                    change.done.fail(its_own)
        self._writing = False
        if self._idle is not None:
            self._idle.succeed(None)

    async def _write_together(self, changes: Sequence[Change]) -> Exception | None:
        """All of them in one transaction.  Returns the error with which none of them was made."""
        statements = [statement for change in changes for statement in change.statements]
        removing = all(change.removing for change in changes)
        try:
            await self._workers.run(self._ledger.write, statements, removing=removing)
        except Exception as error:  # noqa: BLE001  (whatever it was, those who wait are told)
            return error
        for change in changes:
            change.apply()
        for change in changes:
            change.done.succeed(None)
        return None
