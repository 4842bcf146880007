"""Runs `doctor`, `why`, `warm`, `refresh`, `link`, `attach` and `detach`."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python import usage
from twisted.web.client import Agent

from k3dreg.attaching.addresses_for_nodes import Addresses
from k3dreg.commands.attach import attach_clusters, detach_clusters, follow
from k3dreg.commands.checks import as_json, as_text, status_of
from k3dreg.commands.checks_linking import linking_checks
from k3dreg.commands.checks_ports import port_of
from k3dreg.commands.checks_reachability import own_names
from k3dreg.commands.doctor import examine
from k3dreg.commands.link import link
from k3dreg.commands.options_help import OPTIONS
from k3dreg.commands.printing import say
from k3dreg.commands.refresh import open_records, refresh
from k3dreg.commands.running_server import RunningServer
from k3dreg.commands.warm import Warmer, make_printer
from k3dreg.commands.why import explain, parse_image
from k3dreg.config.endpoints import ONLY_LOOPBACK, is_only_loopback, plain_ports
from k3dreg.config.settings import Config
from k3dreg.config.usage import complaint
from k3dreg.credentials.chain import make_chain, make_docker_logins
from k3dreg.docker.client import EngineClient
from k3dreg.docker.endpoint import make_agent
from k3dreg.formats.text import size
from k3dreg.linking.linkers import make_linkers
from k3dreg.oci.errors import EngineError, K3dregError
from k3dreg.oci.reference import Reference
from k3dreg.registry.own_name_discovery import EngineImageNames
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions
from k3dreg.registry.tag_records import TagRecords
from k3dreg.store.database import DatabaseConnection
from k3dreg.streaming.workers import Workers, running_workers
from k3dreg.upstream.name_resolution import make_resolve
from k3dreg.upstream.origin import ITagDigests
from k3dreg.upstream.registry_access import RegistryAccess
from k3dreg.upstream.registry_requests import Requests, make_origin_agent

Write = Callable[[str], object]


def main(command: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Run one of the commands that ask the engine.

    Exits with status 0 if all is well, 1 if not, and 2 for wrong options.
    """
    options: Any = OPTIONS[command](environment)
    try:
        options.parseOptions(list(arguments))
        references = [parse_image(image) for image in options.images]
    except (usage.UsageError, K3dregError) as error:
        sys.stderr.write(complaint(error, options, command))
        raise SystemExit(2) from None

    # With the settings file's variables for the AWS library and credential helpers, as in the daemon.
    surroundings = {**environment, **options.settings_environment}

    async def run(reactor: Any) -> None:
        work: Awaitable[int]
        if command == "doctor":
            work = doctor(options.config, reactor, surroundings, say, as_object=bool(options["json"]))
        elif command == "why":
            work = why(options.config, reactor, surroundings, references[0], say)
        elif command == "refresh":
            work = refresh_images(options.config, reactor, surroundings, references, say)
        elif command == "link":
            work = link_layers(options.config, reactor, references[0], options.nodes, say)
        elif command in ("attach", "detach"):
            work = change_clusters(command, options, reactor, say)
        else:
            work = warm(reactor, options["server"], surroundings, references, say)
        status = await work
        if status:
            raise SystemExit(status)

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))


def _engine(config: Config, reactor: Any) -> EngineClient:
    return EngineClient(make_agent(reactor, config.docker), reactor, description=str(config.docker))


async def doctor(config: Config, reactor: Any, environment: Mapping[str, str], say: Write, *, as_object: bool) -> int:
    """Run all checks, print them with `say`, as JSON if `as_object`, and return the exit status."""
    async with running_workers(reactor) as workers:
        checks = await examine(config, _engine(config, reactor), workers, reactor, environment)
    say(as_json(checks) if as_object else as_text(checks))
    return status_of(checks)


async def why(config: Config, reactor: Any, environment: Mapping[str, str], reference: Reference, say: Write) -> int:
    """Print with `say` how a node's request is answered, and return the exit status: 0 if a node gets the image."""
    async with running_workers(reactor) as workers:
        engine = _engine(config, reactor)
        names, permitted = await _surroundings(config, engine, workers, reactor)
        credentials = make_chain(reactor, workers, environment, config.remote)
        digests = _registries(reactor)
        answer = await explain(reference, config, engine, names, credentials, digests, permitted, workers, reactor, say)
        if answer and config.link_layers:
            for check in await linking_checks(engine, config.docker.socket, workers, reactor):
                say(f"{check.says}. {check.advice}".rstrip(". "))
    return 0 if answer else 1


async def refresh_images(
    config: Config, reactor: Any, environment: Mapping[str, str], references: Sequence[Reference], say: Write
) -> int:
    """Let Docker pull images whose tags have moved, print with `say` what happened, and return the exit status."""
    async with running_workers(reactor) as workers:
        engine = _engine(config, reactor)
        names, permitted = await _surroundings(config, engine, workers, reactor)
        credentials = PullCredentials(make_chain(reactor, workers, environment, config.remote))
        database = await workers.acquire(open_records, DatabaseConnection.close, config.state_dir, say)
        try:
            tags = TagRecords(database, workers)
            resolver = Resolver(engine, reactor, names, pulled=tags.pulled)
            questions = TagQuestions(tags, _registries(reactor), engine, credentials, names, reactor, permitted.check)
            return await refresh(questions, resolver, credentials, engine, names, references, say)
        finally:
            workers.clean_up(database.close)


def _registries(reactor: Any) -> ITagDigests:
    return RegistryAccess(Requests(make_origin_agent(reactor), reactor), reactor)


async def _surroundings(
    config: Config, engine: EngineClient, workers: Workers, reactor: Any
) -> tuple[OwnNames, PermittedRegistries]:
    """Return the daemon's own names, as far as they can be found out, and the registries that it may ask."""
    names = OwnNames(config.aliases)
    with contextlib.suppress(EngineError):  # the command reports the error
        ports = [port for endpoint in config.listen if (port := port_of(endpoint))]
        names, _ = await own_names(engine, config.aliases, socket.gethostname(), ports)
    permitted = PermittedRegistries(
        config.allow_registries,
        engine,
        EngineImageNames(engine, workers),
        make_resolve(reactor),
        remote=config.remote.only,
    )
    return names, permitted


async def link_layers(config: Config, reactor: Any, reference: Reference, nodes: Sequence[str], say: Write) -> int:
    """Link an image into nodes, print with `say` what that saved, and return the exit status."""
    async with running_workers(reactor, 1) as workers:
        engine, names = _engine(config, reactor), OwnNames(config.aliases)
        linkers = await make_linkers(engine, config.docker.socket, workers, reactor)
        try:
            return await link(engine, linkers, workers, names, reference, nodes, say)
        finally:
            with contextlib.suppress(EngineError):
                await linkers.close()


async def change_clusters(command: str, options: Any, reactor: Any, say: Write) -> int:
    """Attach, list or detach clusters, print with `say` what that did, and return the exit status."""
    config, names = options.config, options.clusters
    engine = _engine(config, reactor)
    trouble = ONLY_LOOPBACK if is_only_loopback(config.listen) else ""
    addresses = Addresses(engine, socket.gethostname(), plain_ports(config.listen), trouble, searches=True)
    if command == "detach":
        return await detach_clusters(engine, addresses, names, say, every=bool(options["all"]))
    if options["follow"]:
        await follow(engine, addresses, names, say, reactor)
        return 0
    return await attach_clusters(engine, addresses, names, say, every=bool(options["all"]))


async def warm(
    reactor: Any, server: str, environment: Mapping[str, str], references: Sequence[Reference], say: Write
) -> int:
    """Request images from the k3dreg at `server`, and return the exit status: 1 if it could not give one of them."""
    async with running_workers(reactor) as workers:
        logins = make_docker_logins(reactor, workers, environment)
        is_terminal = sys.stdout.isatty()
        progress = make_printer(sys.stdout, is_terminal=is_terminal)
        running = RunningServer(Agent(reactor), server, logins.credentials)
        try:
            await running.log_in()
        except K3dregError as error:
            say(error.explained)
            return 1
        return await _warm_all(Warmer(running, reactor, progress), references, say, is_terminal=is_terminal)


async def _warm_all(warmer: Warmer, references: Sequence[Reference], say: Write, *, is_terminal: bool) -> int:
    status = 0
    for reference in references:
        end = "\n" if is_terminal else ""
        try:
            prepared = await warmer.warm(reference)
        except K3dregError as error:
            say(f"{end}{reference}: {error.explained}")
            status = 1
        else:
            say(f"{end}{reference}: ready, {size(prepared)}")
    return status
