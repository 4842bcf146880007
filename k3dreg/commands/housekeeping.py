"""`k3dreg ls` and `k3dreg gc`: list what was pushed into a state directory, and collect its garbage."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python import usage

from k3dreg.clusters.node_images import images_on_nodes
from k3dreg.commands.printing import say
from k3dreg.config.retention import RetainRule
from k3dreg.config.sources import Sources, read_sources
from k3dreg.config.usage import CommandLine, columns, complaint
from k3dreg.docker.client import EngineClient
from k3dreg.docker.endpoint import make_agent
from k3dreg.formats.text import age, counted, size
from k3dreg.images.content_map import CONTENT_TABLES, ContentMap
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError, StateInUse, UsageError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.blob_files import blob_path
from k3dreg.store.blob_store import open_store_in
from k3dreg.store.collection import GRACE, AskNodes, Collected, Collector, unknown
from k3dreg.store.database import DATABASE_FILE, Database, open_copy, open_read_only
from k3dreg.store.interfaces import NodeImages, PushedImage
from k3dreg.store.pushed import PushedContent
from k3dreg.store.pushed_queries import all_images
from k3dreg.store.pushed_tables import PUSHED_TABLES
from k3dreg.store.state_directory import StateDirectory
from k3dreg.streaming.workers import Workers, running_workers

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

    synopsis = "Usage: k3dreg gc [OPTION]..."
    about = (
        "Remove pushed tags that the rules of --retain do not keep, with what only they lead to, and pushed blobs that "
        "no manifest refers to. A running daemon does this by itself every hour: stop it before you run this command "
        "without --dry-run."
    )
    examples = ("k3dreg gc --retain 'tilt-*=20' --retain '*-dev=14d' --dry-run", "k3dreg gc --untagged --grace 24")
    optParameters = [  # noqa: RUF012
        ["state-dir", None, None, "The daemon's state directory"],
        ["grace", None, str(GRACE / _HOUR), "Keep blobs without a manifest for this many hours"],
    ]
    optFlags = [  # noqa: RUF012
        ["untagged", None, "Also remove manifests that no tag leads to"],
        ["dry-run", None, "Only print what would be removed; a daemon may run"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rules: tuple[str, ...] = ()

    def opt_retain(self, rule: str) -> None:
        """A rule for pushed tags; may be repeated [the daemon's, from K3DREG_RETAIN or the settings file]"""
        self.rules = (*self.rules, rule)


def main(command: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Run `ls` or `gc`.  Exits with status 1 and a sentence if that fails, and with 2 for wrong options."""
    make: Any = {"ls": ListOptions, "gc": CollectOptions}[command]
    options: Any = make()
    try:
        options.parseOptions(list(arguments))
        grace = parse_grace(options.get("grace", "0")) * _HOUR
        sources = settings(options, environment, retain=getattr(options, "rules", ()))
        state_dir, rules, docker = (sources.value(field) for field in ("state_dir", "retain", "docker"))
    except (usage.UsageError, UsageError) as error:
        sys.stderr.write(complaint(error, options, command))
        raise SystemExit(2) from None
    check_state(state_dir)
    if command == "ls":
        try:
            with contextlib.closing(open_read_only(state_dir / DATABASE_FILE, (PUSHED_TABLES,))) as database:
                images = all_images(database)
        except K3dregError as error:
            fail(str(error))
        for line in listing(images, sizes_in(state_dir), columns() if sys.stdout.isatty() else None, time.time()):
            say(line)
        return
    collect = _dry_run if options["dry-run"] else _collect
    untagged = bool(options["untagged"])

    def run(reactor: Any) -> Deferred[None]:
        engine = EngineClient(make_agent(reactor, docker), reactor, description=str(docker))
        ask = partial(_images_on_nodes, engine)
        return Deferred.fromCoroutine(collect(reactor, state_dir, rules, grace, untagged, ask))

    react(run)


async def _images_on_nodes(engine: EngineClient) -> NodeImages | None:
    held = await images_on_nodes(engine)
    if held is None:
        sys.stderr.write("k3dreg: Docker does not answer: what nodes held when they were asked last counts\n")
    return held


def settings(options: Any, environment: dict[str, str], **repeated: Sequence[str]) -> Sources:
    """Return the daemon's settings, with `--state-dir` and the given values of repeated options.

    Raises `usage.UsageError` or `UsageError`.
    """
    given = {"state-dir": (options["state-dir"],)} if options["state-dir"] else {}
    return read_sources({**given, **{name: tuple(values) for name, values in repeated.items()}}, environment, ())


def check_state(state_dir: Path) -> None:
    """End the process if there is no database in the state directory, or this user may not see it."""
    try:
        (state_dir / DATABASE_FILE).stat()
    except FileNotFoundError:
        fail(f"nothing was pushed into the state directory {state_dir}")
    except OSError as error:
        fail(f"the state directory {state_dir} cannot be used: {error.strerror}; run it as the daemon's user")


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


def listing(
    images: Sequence[PushedImage], size_of: Callable[[Digest], int], width: int | None = None, now: float = 0.0
) -> list[str]:
    """Return a line of titles, and a line for each image.

    The size is that of all blobs of an image; a blob of two images counts for both.  `width` is that of the terminal in
    columns, for which digests are shortened, and times are told as ages; with None both are whole.  A name that is too
    long for its column shifts only its own line.  `now` is in seconds since the epoch.
    """
    lines = [
        (
            f"{image.repository}:{image.tag or '<none>'}",
            str(image.digest) if width is None else str(image.digest)[:_SHORT_DIGEST],
            size(sum(map(size_of, image.contents))),
            *(_time(at, None if width is None else now) for at in (image.since, image.pulled)),
        )
        for image in images
    ]
    if not lines:
        return ["nothing was pushed"]
    lines = [("NAME", "DIGEST", "SIZE", "PUSHED", "PULLED"), *sorted(lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = _LONGEST_NAME if width is None else max(width - sum(widths[1:]) - 2 * len(widths[1:]), len("NAME"))
    named = min(widths[0], room)
    return [
        f"{name:{named}}  {digest:{widths[1]}}  {size:>{widths[2]}}  {pushed:{widths[3]}}  {pulled}"
        for name, digest, size, pushed, pulled in lines
    ]


def _time(at: float, now: float | None) -> str:
    """Return a time in seconds since the epoch, "-" for 0, or as an age if `now` is given: `2 h`."""
    if not at:
        return "-"
    if now is None:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    return age(now - at)


async def _collect(
    reactor: Any, state_dir: Path, rules: Sequence[RetainRule], grace: float, untagged: bool, ask: AskNodes
) -> None:
    try:
        async with running_workers(reactor) as workers, opened(reactor, workers, state_dir, ask) as (_, collector):
            collector.retain(rules)
            for line in told(await collector.collect(grace, untagged=untagged), "removed"):
                say(line)
    except StateInUse as error:
        fail(f"{error} (a running daemon collects by itself; to collect now, stop it first)")
    except K3dregError as error:
        fail(str(error))


@contextlib.asynccontextmanager
async def opened(
    reactor: Any, workers: Workers, state_dir: Path, ask: AskNodes = unknown
) -> AsyncIterator[tuple[PushedContent, Collector]]:
    """Open what was pushed into a state directory, which no daemon uses, and close it at the end.

    `ask`: see `Collector`.  Raises `StateInUse` or another `K3dregError`.
    """
    state = await workers.acquire(StateDirectory, StateDirectory.close, state_dir)
    tables = (PUSHED_TABLES, CONTENT_TABLES)
    with contextlib.closing(state):
        database = await workers.run(Database, state_dir / DATABASE_FILE, tables, state.reserve)
        with contextlib.closing(database):
            pushed = PushedContent(database, workers, reactor)
            store = await open_store_in(state, workers, _NO_LIMIT, reactor, pushed)
            try:
                yield pushed, Collector(pushed, store, ContentMap(database, workers).knows, reactor, ask)
            finally:
                await store.close()
                await pushed.close()


class _Files:
    """The files of a state directory, of which none is removed.  Implements `IFiles`."""

    def __init__(self, state_dir: Path) -> None:
        self._blobs = state_dir / "blobs"
        self.size_of = sizes_in(state_dir)

    def has(self, digest: Digest) -> bool:
        return blob_path(self._blobs, digest).exists()

    async def drop(self, digest: Digest) -> bool:
        return True


async def _dry_run(
    reactor: Any, state_dir: Path, rules: Sequence[RetainRule], grace: float, untagged: bool, ask: AskNodes
) -> None:
    """Collect in a copy of the database, which a daemon may be using, and print what would go."""
    tables = (PUSHED_TABLES, CONTENT_TABLES)
    try:
        async with running_workers(reactor) as workers:
            with contextlib.closing(await workers.run(open_copy, state_dir / DATABASE_FILE, tables)) as database:
                pushed = PushedContent(database, workers, reactor)
                collector = Collector(pushed, _Files(state_dir), ContentMap(database, workers).knows, reactor, ask)
                collector.retain(rules)
                for line in told(await collector.collect(grace, untagged=untagged), "would remove"):
                    say(line)
                await pushed.close()
    except K3dregError as error:
        fail(str(error))


def told(collected: Collected, verb: str) -> list[str]:
    """Return what was collected as lines.  The last is such as `removed 1 blob and 2 manifests: 3 files, 1.2 MB`."""
    blobs, manifests, files, tags = (
        counted(count, what)
        for count, what in (
            (collected.blobs, "blob"),
            (collected.manifests, "manifest"),
            (collected.files, "file"),
            (len(collected.tags), "tag"),
        )
    )
    what = f"{tags}, {blobs} and {manifests}" if collected.tags else f"{blobs} and {manifests}"
    lines = [f"{verb} {tag}: --retain {tag.rule.text}" for tag in collected.tags]
    return [*lines, f"{verb} {what}: {files}, {size(collected.bytes)}"]


def fail(message: str) -> NoReturn:
    """End the process with a sentence and status 1."""
    sys.stderr.write(f"k3dreg: {message}\n")
    raise SystemExit(1)
