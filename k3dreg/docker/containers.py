"""Requests about the engine's containers.

Every function raises `EngineError`.  A member of an answer that is missing or of another type is taken as empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from attrs import frozen

from k3dreg.docker.documents import ask, post
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.members import items, mapping, number, text, texts
from k3dreg.oci.errors import EngineError, EngineUnavailable

# Seconds.  A request here takes the engine some ten milliseconds; starting a container takes some hundred.
_MAX_WAIT = 20.0
# States of a container that is being removed, or whose removal has failed (Engine API, "Inspect a container").
_GOING = ("removing", "dead")


@frozen
class Membership:
    """A network that a container is in, the container's names there, and the address of the engine's host there."""

    network: str
    aliases: tuple[str, ...] = ()
    gateway: str = ""


@frozen
class Container:
    """A container as the engine describes it.

    `pid` is its first process, by its number on the engine's host; 0 if it does not run.  `mounts` are pairs of a path
    on the engine's host and the path at which the container has it, and `binds` those that are no volumes.
    `tcp_ports` are pairs of a port in the container and the host's port that leads to it; `aliases` are the names that
    the container has in its networks.
    """

    name: str = ""
    status: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = {}
    tcp_ports: tuple[tuple[str, str], ...] = ()
    networks: tuple[Membership, ...] = ()
    pid: int = 0
    mounts: tuple[tuple[str, str], ...] = ()
    binds: tuple[tuple[str, str], ...] = ()

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that the container has in its networks, beside its own."""
        return tuple(alias for joined in self.networks for alias in joined.aliases)

    @property
    def is_going(self) -> bool:
        """Whether the container's removal has begun."""
        return self.status in _GOING


@frozen
class ListedContainer:
    """A container in the engine's list.

    `addresses` are its IP addresses in the engine's `networks`.  `image` and `command` are what it was made from.
    """

    id: str
    state: str = ""
    labels: Mapping[str, str] = {}
    addresses: tuple[str, ...] = ()
    name: str = ""
    networks: tuple[str, ...] = ()
    image: str = ""
    command: str = ""


async def inspect(engine: IEngineRequests, name: str) -> Container | None:
    """Return the container of this name or ID; None if the engine has none."""
    try:
        return parse_container(await description(engine, name))
    except EngineError as error:
        if error.status == 404:
            return None
        raise


async def description(engine: IEngineRequests, name: str) -> Mapping[str, Any]:
    """Return the engine's JSON description of a container, to create a similar one from."""
    path = f"/containers/{quote(name, safe='')}/json"
    return mapping(await ask(engine, "GET", path, "a container's description", max_wait=_MAX_WAIT))


async def with_labels(engine: IEngineRequests, labels: Mapping[str, str]) -> Sequence[ListedContainer]:
    """Return the containers that have all of these labels, running or not; without labels, all containers."""
    filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
    return await _listed(engine, {"all": "1", "filters": filters})


async def listed(engine: IEngineRequests) -> Sequence[ListedContainer]:
    """Return all containers, running or not."""
    return await _listed(engine, {"all": "1"})


async def running(engine: IEngineRequests) -> Sequence[ListedContainer]:
    """Return all containers that run."""
    return await _listed(engine, {})


async def _listed(engine: IEngineRequests, params: Mapping[str, str]) -> Sequence[ListedContainer]:
    found = await ask(engine, "GET", "/containers/json", "the list of containers", params=params, max_wait=_MAX_WAIT)
    return [
        ListedContainer(
            container["Id"],
            text(container.get("State")),
            texts(container.get("Labels")),
            tuple(
                address
                for network in mapping(mapping(container.get("NetworkSettings")).get("Networks")).values()
                for name in ("IPAddress", "GlobalIPv6Address")
                if (address := text(mapping(network).get(name)))
            ),
            # A container that another one links to has names with two slashes, too.
            next((name[1:] for each in items(container.get("Names")) if "/" not in (name := text(each))[1:]), ""),
            tuple(mapping(mapping(container.get("NetworkSettings")).get("Networks"))),
            text(container.get("Image")),
            text(container.get("Command")),
        )
        for container in items(found)
        if isinstance(container, dict) and text(container.get("Id"))
    ]


async def create(
    engine: IEngineRequests,
    name: str,
    alternatives: Sequence[tuple[str, ...]],
    describe: Callable[[tuple[str, ...]], Mapping[str, Any]],
) -> tuple[str, tuple[str, ...]]:
    """Create a container with the first of the `alternatives` that the engine's host has.

    An alternative is a tuple of directories.  `describe` turns it into the body of the request (Engine API, "Create a
    container"), with `bind_mounts`.  Returns the container's ID and its directories.
    """
    for directories in alternatives[:-1]:
        try:
            return await _create(engine, name, describe(directories)), directories
        except EngineUnavailable:
            raise
        except EngineError as error:
            if error.status != 400:  # 400: a directory to be mounted does not exist
                raise
    return await _create(engine, name, describe(alternatives[-1])), alternatives[-1]


async def _create(engine: IEngineRequests, name: str, description: Mapping[str, Any]) -> str:
    made = mapping(await post(engine, "/containers/create", description, params={"name": name}, max_wait=_MAX_WAIT))
    if not text(made.get("Id")):
        raise EngineError("the engine does not tell the ID of the container that it created")
    return text(made.get("Id"))


def bind_mounts(directories: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the `Mounts` of a container that has `directories` of the engine's host read-only as /0, /1 and so on."""
    return [bind_mount(directory, f"/{place}") for place, directory in enumerate(directories)]


def bind_mount(source: str, target: str, *, read_only: bool = True) -> dict[str, Any]:
    """Return one of a container's `Mounts`, which has the directory `source` of the engine's host at `target`.

    `Mounts` and not `Binds`, because the engine would create a missing directory of `Binds`.  It is not recursive,
    because k3dreg needs no mounts of other containers that lie below the directory, and would keep them mounted.
    """
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"NonRecursive": True},
    }


async def start(engine: IEngineRequests, container: str) -> None:
    """Start the container of this ID."""
    await ask(engine, "POST", f"/containers/{container}/start", max_wait=_MAX_WAIT)


async def wait(engine: IEngineRequests, container: str) -> None:
    """Return when the container of this ID has ended."""
    await ask(engine, "POST", f"/containers/{container}/wait", max_wait=_MAX_WAIT)


async def remove(engine: IEngineRequests, container: str) -> None:
    """Remove a container, running or not.  It is no error if it does not exist, or is being removed."""
    try:
        await ask(engine, "DELETE", f"/containers/{container}", params={"force": "1", "v": "1"}, max_wait=_MAX_WAIT)
    except EngineError as error:
        if error.status not in (404, 409):
            raise


def parse_container(told: object) -> Container:
    """Return the container that an answer to `GET /containers/{name}/json` describes."""
    described = mapping(told)
    config, network = mapping(described.get("Config")), mapping(described.get("NetworkSettings"))
    bindings = mapping(mapping(described.get("HostConfig")).get("PortBindings"))
    return Container(
        name=text(described.get("Name")).lstrip("/"),
        status=text(mapping(described.get("State")).get("Status")),
        hostname=text(config.get("Hostname")),
        labels=texts(config.get("Labels")),
        tcp_ports=(*_tcp_ports(mapping(network.get("Ports"))), *_tcp_ports(bindings)),
        networks=tuple(
            Membership(
                name, tuple(map(str, items(mapping(joined).get("Aliases")))), text(mapping(joined).get("Gateway"))
            )
            for name, joined in mapping(network.get("Networks")).items()
        ),
        pid=number(mapping(described.get("State")).get("Pid")),
        mounts=_mounts(described),
        binds=_mounts(described, "bind"),
    )


def _mounts(described: Mapping[str, Any], kind: str = "") -> tuple[tuple[str, str], ...]:
    return tuple(
        (text(each.get("Source")), text(each.get("Destination")))
        for each in items(described.get("Mounts"))
        if isinstance(each, dict) and (not kind or each.get("Type") == kind)
    )


def _tcp_ports(bindings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a container's TCP port and a host's port from `{"5000/tcp": [{"HostPort": "5005"}]}`."""
    for name, targets in bindings.items():
        port, _, protocol = name.partition("/")
        if protocol in ("", "tcp") and isinstance(targets, list):
            for target in targets:
                # In HostConfig, port 0 stands for any free port; NetworkSettings has the port that Docker chose.
                if (chosen := str(mapping(target).get("HostPort") or "0")) != "0":
                    yield port, chosen
