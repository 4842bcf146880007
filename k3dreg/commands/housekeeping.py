"""`k3dreg ls` and `k3dreg gc`: list what was pushed into a state directory, and collect its garbage."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python import usage

from k3dreg.config.usage import CommandLine, columns, complaint
from k3dreg.config.values import default_state_dir
from k3dreg.images.content_map import CONTENT_TABLES, ContentMap
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError, UsageError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.blob_files import blob_path
from k3dreg.store.blob_store import open_store_in
from k3dreg.store.collection import GRACE, Collected, Collector
from k3dreg.store.database import DATABASE_FILE, Database, open_read_only
from k3dreg.store.interfaces import PushedImage
from k3dreg.store.pushed import PushedContent
from k3dreg.store.pushed_queries import all_images
from k3dreg.store.pushed_tables import PUSHED_TABLES
from k3dreg.store.state_directory import StateDirectory
from k3dreg.streaming.workers import Workers

log = make_logger()

_HOUR = 3600.0
# Hours: 114 years, which is beyond any need, and within the range of dates.
_LONGEST_GRACE = 1e6
# Characters of a digest, its algorithm included, as many as Docker's client shows.
_SHORT_DIGEST = 19
# Characters of the column of names.  Longer names are rare, and a column for them would leave no room for the others.
_LONGEST_NAME = 40
# Bytes of the cache: a limit above any cache's size, so that a collection evicts nothing.
_NO_LIMIT = 1 << 62


class ListOptions(CommandLine):
    """The command line of `k3dreg ls`."""

    synopsis = "Usage: k3dreg ls [--state-dir DIR]"
    about = (
        "List the images that were pushed. You may run it while a daemon runs. On a terminal digests are shortened; "
        "in a pipe, as in `k3dreg ls | cat`, they are whole."
    )
    examples = ("k3dreg ls --state-dir /var/lib/k3dreg",)
    optParameters = [["state-dir", None, None, "The daemon's state directory"]]  # noqa: RUF012


class CollectOptions(CommandLine):
    """The command line of `k3dreg gc`."""

    synopsis = "Usage: k3dreg gc [--state-dir DIR] [--grace HOURS] [--untagged]"
    about = (
        "Remove pushed blobs that no manifest refers to. A running daemon does this by itself: stop it before you run "
        "this command."
    )
    examples = ("k3dreg gc --untagged --grace 24",)
    optParameters = [  # noqa: RUF012
        ["state-dir", None, None, "The daemon's state directory"],
        ["grace", None, str(GRACE / _HOUR), "Keep blobs without a manifest for this many hours"],
    ]
    optFlags = [["untagged", None, "Also remove manifests that no tag leads to"]]  # noqa: RUF012


def main(command: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Run `ls` or `gc`.  Exits with status 1 and a sentence if that fails, and with 2 for wrong options."""
    make: Any = {"ls": ListOptions, "gc": CollectOptions}[command]
    options: Any = make()
    try:
        options.parseOptions(list(arguments))
        grace = parse_grace(options.get("grace", "0")) * _HOUR
    except usage.UsageError as error:
        sys.stderr.write(complaint(error, options, command))
        raise SystemExit(2) from None
    state_dir = Path(options["state-dir"] or environment.get("K3DREG_STATE_DIR") or default_state_dir(environment))
    try:
        (state_dir / DATABASE_FILE).stat()
    except FileNotFoundError:
        _fail(f"nothing was pushed into the state directory {state_dir}", 1)
    except OSError as error:
        _fail(f"the state directory {state_dir} cannot be used: {error.strerror}; run it as the daemon's user", 1)
    if command == "ls":
        try:
            with contextlib.closing(open_read_only(state_dir / DATABASE_FILE, (PUSHED_TABLES,))) as database:
                images = all_images(database)
        except K3dregError as error:
            _fail(str(error), 1)
        for line in listing(images, sizes_in(state_dir), columns() if sys.stdout.isatty() else None):
            print(line)  # noqa: T201
        return
    react(lambda reactor: Deferred.fromCoroutine(_collect(reactor, state_dir, grace, bool(options["untagged"]))))


def parse_grace(text: str) -> float:
    """Return the hours of `--grace`.  Raises `usage.UsageError`."""
    try:
        grace = float(text)
    except ValueError:
        grace = -1
    if not 0 <= grace <= _LONGEST_GRACE:
        raise usage.UsageError(f"--grace is a number of hours, not {text!r}")
    return grace


def sizes_in(state_dir: Path) -> Callable[[Digest], int]:
    """Return a function for the size in bytes of a blob in the state directory, 0 if it is not there.  It blocks."""

    def size_of(digest: Digest) -> int:
        try:
            return blob_path(state_dir / "blobs", digest).stat().st_size
        except OSError:
            return 0

    return size_of


def listing(images: Sequence[PushedImage], size_of: Callable[[Digest], int], width: int | None = None) -> list[str]:
    """Return a line of titles, and a line for each image.

    The size is that of all blobs of an image; a blob of two images counts for both.  `width` is that of the terminal in
    columns, for which digests are shortened; with None they are whole.  A name that is too long for its column shifts
    only its own line.
    """
    lines = [
        (
            f"{image.repository}:{image.tag or '<none>'}",
            str(image.digest) if width is None else str(image.digest)[:_SHORT_DIGEST],
            f"{sum(map(size_of, image.contents)) / 1e6:.1f} MB",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(image.since)) if image.since else "-",
        )
        for image in images
    ]
    if not lines:
        return ["nothing was pushed"]
    lines = [("NAME", "DIGEST", "SIZE", "PUSHED"), *sorted(lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = _LONGEST_NAME if width is None else max(width - sum(widths[1:]) - 6, len("NAME"))
    named = min(widths[0], room)
    return [
        f"{name:{named}}  {digest:{widths[1]}}  {size:>{widths[2]}}  {pushed}" for name, digest, size, pushed in lines
    ]


async def _collect(reactor: Any, state_dir: Path, grace: float, untagged: bool) -> None:
    workers = Workers(reactor)
    workers.start()
    try:
        state = await workers.acquire(StateDirectory, StateDirectory.close, state_dir)
        tables = (PUSHED_TABLES, CONTENT_TABLES)
        with contextlib.closing(state):
            database = await workers.run(Database, state_dir / DATABASE_FILE, tables, state.reserve)
            with contextlib.closing(database):
                print(told(await _collect_in(state, database, workers, reactor, grace, untagged)))  # noqa: T201
    except UsageError as error:
        _fail(f"{error} (a running daemon collects by itself; to collect now, stop it first)", 1)
    except K3dregError as error:
        _fail(str(error), 1)
    finally:
        await workers.stop()


async def _collect_in(
    state: StateDirectory, database: Database, workers: Workers, reactor: Any, grace: float, untagged: bool
) -> Collected:
    pushed = PushedContent(database, workers, reactor)
    store = await open_store_in(state, workers, _NO_LIMIT, reactor, pushed)
    try:
        collector = Collector(pushed, store, ContentMap(database, workers).knows, reactor)
        return await collector.collect(grace, untagged=untagged)
    finally:
        await store.close()
        await pushed.close()


def told(collected: Collected) -> str:
    """Return what was collected as text: `removed 1 blob and 2 manifests: 3 files, 1.2 MB`."""
    blobs, manifests, files = (
        f"{count} {what}{'' if count == 1 else 's'}"
        for count, what in ((collected.blobs, "blob"), (collected.manifests, "manifest"), (collected.files, "file"))
    )
    return f"removed {blobs} and {manifests}: {files}, {collected.bytes / 1e6:.1f} MB"


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"k3dreg: {message}\n")
    raise SystemExit(status)
