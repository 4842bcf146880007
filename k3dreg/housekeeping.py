"""`k3dreg ls` and `k3dreg gc`: looking after a state directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python import usage

from k3dreg.log import make_logger
from k3dreg.model.errors import K3dregError, UsageError
from k3dreg.settings import default_state_dir
from k3dreg.store.blobs import open_store_in
from k3dreg.store.catalogue import open_catalogue
from k3dreg.store.collect import GRACE, Collector
from k3dreg.store.ledger import Ledger, Row
from k3dreg.store.pushed import LEDGER_NAME, open_pushed
from k3dreg.store.state import StateDirectory
from k3dreg.streaming.workers import Workers

log = make_logger()

_HOUR = 3600.0
# Bytes: no cache is evicted by a collection.
_NO_LIMIT = 1 << 62


class ListOptions(usage.Options):
    """`k3dreg ls`."""

    synopsis = "Usage: k3dreg ls [--state-dir DIR]"
    longdesc = "List what was pushed.  A daemon that uses the directory is not disturbed."
    optParameters = [["state-dir", None, None, "The state directory of the daemon"]]  # noqa: RUF012


class CollectOptions(usage.Options):
    """`k3dreg gc`."""

    synopsis = "Usage: k3dreg gc [--state-dir DIR] [--grace HOURS] [--untagged]"
    longdesc = (
        "Remove what was pushed and nobody refers to.  A running daemon does it by itself, so this is for one that "
        "does not run."
    )
    optParameters = [  # noqa: RUF012
        ["state-dir", None, None, "The state directory of the daemon"],
        ["grace", None, str(GRACE / _HOUR), "Hours that a blob without a manifest is kept"],
    ]
    optFlags = [["untagged", None, "Remove manifests that no tag leads to, too"]]  # noqa: RUF012


def main(command: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Run `ls` or `gc`, and exit.  With status 1 and a sentence when that fails."""
    make: Any = {"ls": ListOptions, "gc": CollectOptions}[command]
    options: Any = make()
    try:
        options.parseOptions(list(arguments))
        grace = float(options.get("grace", 0)) * _HOUR
    except (usage.UsageError, ValueError) as error:
        _fail(f"{error}\n{options.synopsis}", 2)
    state_dir = Path(options["state-dir"] or environment.get("K3DREG_STATE_DIR") or default_state_dir(environment))
    if not (state_dir / LEDGER_NAME).exists():
        _fail(f"nothing was ever pushed into the state directory {state_dir}", 1)
    if command == "ls":
        try:
            for line in listing(Ledger(state_dir / LEDGER_NAME, read_only=True).read()):
                print(line)  # noqa: T201
        except K3dregError as error:
            _fail(str(error), 1)
        return
    react(lambda reactor: Deferred.fromCoroutine(_collect(reactor, state_dir, grace, bool(options["untagged"]))))


def listing(rows: Sequence[Row]) -> list[str]:
    """One line for each tag, and for each manifest that has none: its name and its digest."""
    tags: dict[tuple[str, str], list[str]] = {}
    lines: list[str] = []
    for row in rows:
        if row.tag is not None:
            tags.setdefault((str(row.repository), str(row.tag[1])), []).append(row.tag[0])
    for row in rows:
        if row.manifest is not None:
            repository, digest = str(row.repository), str(row.manifest.digest)
            names = [f"{repository}:{tag}" for tag in sorted(tags.get((repository, digest), []))]
            lines += [f"{name}  {digest}" for name in names or [f"{repository}@"]]
    return sorted(lines)


async def _collect(reactor: Any, state_dir: Path, grace: float, untagged: bool) -> None:
    workers = Workers(reactor)
    workers.start()
    try:
        state = await workers.run(StateDirectory, state_dir)
        pushed = await open_pushed(state_dir, workers, reactor, state.reserve)
        store = await open_store_in(state, workers, _NO_LIMIT, reactor, is_pinned=pushed.keeps)
        try:
            catalogue = await open_catalogue(state_dir, workers)
            collector = Collector(pushed, store, lambda digest: bool(catalogue.images_with(digest)), reactor)
            collected = await collector.collect(grace, untagged=untagged)
            print(  # noqa: T201
                f"removed {collected.blobs} blobs and {collected.manifests} manifests, {collected.files} files"
            )
        finally:
            await store.close()
            await pushed.close()
            state.close()
    except UsageError as error:
        _fail(f"{error}; a daemon that runs collects by itself", 1)
    except K3dregError as error:
        _fail(str(error), 1)
    finally:
        await workers.stop()


def _fail(message: str, status: int) -> None:
    sys.stderr.write(f"k3dreg: {message}\n")
    raise SystemExit(status)
