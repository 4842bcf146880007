"""`k3dreg rm`: remove pushed tags and manifests, through the running daemon if there is one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python import usage
from twisted.web.client import Agent

from k3dreg.commands.checks_ports import port_of
from k3dreg.commands.housekeeping import check_state, fail, opened, settings, told
from k3dreg.commands.printing import say
from k3dreg.commands.running_server import RunningServer, ServerRefused, path_of, read, refusal_of
from k3dreg.config.usage import CommandLine, complaint
from k3dreg.credentials.chain import make_docker_logins
from k3dreg.oci.errors import K3dregError, StateInUse, UsageError
from k3dreg.oci.reference import Reference, Repository, Tag, split_name
from k3dreg.store.collection import Collector
from k3dreg.store.identity import identity, public_name
from k3dreg.store.pushed import PushedContent
from k3dreg.streaming.workers import running_workers

Write = Callable[[str], object]


class RemoveOptions(CommandLine):
    """The command line of `k3dreg rm`.  `names` are the arguments REFERENCE."""

    synopsis = "Usage: k3dreg rm [--state-dir DIR] [--server URL] REFERENCE..."
    about = (
        "Remove pushed tags, such as my-app:1, with what only they lead to, or pushed manifests, such as "
        "my-app@sha256:..., with all their tags. A daemon that uses the state directory is asked to do this, and frees "
        "the disk at its next garbage collection. The exit status is 1 if something could not be removed."
    )
    examples = ("k3dreg rm my-app:1 my-app:2", "k3dreg rm --server http://127.0.0.1:5005 my-app:1")
    optParameters = [  # noqa: RUF012
        ["state-dir", None, None, "The daemon's state directory"],
        ["server", None, None, "URL of the running daemon, such as http://127.0.0.1:5005"],
    ]
    names: tuple[str, ...] = ()

    def parseArgs(self, *names: str) -> None:
        """Take the arguments REFERENCE.  Raises `usage.UsageError` if there are none."""
        if not names:
            raise usage.UsageError("rm takes one reference or more")
        self.names = names


@frozen
class Pushed:
    """What an argument of `rm` names: a tag or digest in one of these repositories, in the order of likelihood.

    The first is as clients name it.
    """

    references: tuple[Reference, ...]

    @classmethod
    def parse(cls, text: str) -> Pushed:
        """Parse `NAME:TAG` or `NAME@DIGEST`, whose NAME may begin with one of the registry's own names.

        Raises `UsageError`, `InvalidName`, `InvalidReference` or `InvalidDigest`.
        """
        name, tag, digest = split_name(text)
        target = tag if digest is None else digest
        if target is None:
            raise UsageError(f"{text[:150]!r} has neither a tag nor a digest")
        named = Repository.of_name(name)
        # A path may begin with a host, as in ghcr.io/team/app, but not with a host and port.
        has_port = named.registry is not None and ":" in named.registry
        repositories = (named, Repository(None, named.path)) if has_port else (Repository.parse(name), named)
        return cls(tuple(Reference.parse(each, target) for each in dict.fromkeys(repositories)))


def main(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Run `rm`.  Exits with status 1 if something could not be removed, and with 2 for wrong options."""
    make: Any = RemoveOptions  # `usage.Options` has no types
    options: Any = make()
    try:
        options.parseOptions(list(arguments))
        pushed = [Pushed.parse(name) for name in options.names]
        sources = settings(options, environment)
        state_dir, listen = sources.value("state_dir"), sources.value("listen")
    except (usage.UsageError, K3dregError) as error:
        sys.stderr.write(complaint(error, options, "rm"))
        raise SystemExit(2) from None
    if not options["server"]:
        check_state(state_dir)

    async def run(reactor: Any) -> None:
        status = await _remove(reactor, pushed, state_dir, options["server"], listen, environment, say)
        if status:
            raise SystemExit(status)

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))


async def _remove(
    reactor: Any,
    pushed: Sequence[Pushed],
    state_dir: Path,
    server: str | None,
    listen: Sequence[str],
    environment: dict[str, str],
    say: Write,
) -> int:
    own = ""
    try:
        async with running_workers(reactor) as workers:
            if not server:
                try:
                    async with opened(reactor, workers, state_dir) as (content, collector):
                        return await _in_state(pushed, content, collector, say)
                except StateInUse:
                    port = next(filter(None, map(port_of, listen)), 5000)
                    server, own = f"http://127.0.0.1:{port}", public_name(await workers.run(identity, state_dir))
            logins = make_docker_logins(reactor, workers, environment)
            running = RunningServer(Agent(reactor), server, logins.credentials)
            if own:
                await running.check_state(own)
            return await _through_server(pushed, running, say)
    except K3dregError as error:
        fail(error.explained)


async def _in_state(pushed: Iterable[Pushed], content: PushedContent, collector: Collector, say: Write) -> int:
    status = 0
    for each in pushed:
        if await _removed(each, content):
            say(f"removed {each.references[0]}")
        else:
            say(f"{each.references[0]} was not pushed")
            status = 1
    for line in told(await collector.collect(), "removed"):
        say(line)
    return status


async def _removed(pushed: Pushed, content: PushedContent) -> bool:
    for reference in pushed.references:
        target = reference.target
        if isinstance(target, Tag):
            removed = await content.remove_tag_and_manifests(reference.repository, target)
        else:
            removed = await content.remove_manifest(reference.repository, target)
        if removed:
            return True
    return False


async def _through_server(pushed: Iterable[Pushed], server: RunningServer, say: Write) -> int:
    await server.log_in()
    status = 0
    for each in pushed:
        reference = each.references[0]
        response = await server.request(path_of(reference, **{"with": "manifest"}), "DELETE")
        if response.code == 202:
            await read(response)
            say(f"removed {reference}")
            continue
        refusal = await refusal_of(response)
        if response.code == 405:
            refusal = ServerRefused(
                "deleting is turned off in this k3dreg", advice="stop it, and run the command again"
            )
        say(f"{reference}: {refusal.explained}")
        status = 1
    return status
