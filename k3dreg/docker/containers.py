"""Containers in the engine.

Every function raises `EngineError`.  What the engine does not tell, or tells in another shape, is empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from attrs import frozen

from k3dreg.docker.documents import ask
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.members import items, mapping, text, texts
from k3dreg.oci.errors import EngineError, EngineUnavailable

# Seconds.  Each request here takes the engine some ten milliseconds; to start a container takes some hundred.
_PATIENCE = 20.0
# States of a container that is being removed, or could not be removed whole (Engine API, "Inspect a container").
_GOING = ("removing", "dead")


@frozen
class Container:
    """A container as the engine describes it.

    `tcp_ports` are pairs of a port in the container and the host's port that leads to it; `aliases` are the names
    that the container has in its networks.
    """

    name: str = ""
    status: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = {}
    tcp_ports: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def is_going(self) -> bool:
        """Tell whether its removal has begun."""
        return self.status in _GOING


@frozen
class ListedContainer:
    """A container in the engine's list."""

    id: str
    state: str = ""
    labels: Mapping[str, str] = {}


async def inspect(engine: IEngineRequests, name: str) -> Container | None:
    """Return the container of this name or ID; None if the engine has none."""
    path = f"/containers/{quote(name, safe='')}/json"
    try:
        return parse_container(await ask(engine, "GET", path, "a container's description", patience=_PATIENCE))
    except EngineError as error:
        if error.status == 404:
            return None
        raise


async def description(engine: IEngineRequests, name: str) -> Mapping[str, Any]:
    """Return what the engine tells of a container, for a description of another one like it."""
    path = f"/containers/{quote(name, safe='')}/json"
    return mapping(await ask(engine, "GET", path, "a container's description", patience=_PATIENCE))


async def with_labels(engine: IEngineRequests, labels: Mapping[str, str]) -> Sequence[ListedContainer]:
    """Return the containers that have all of these labels, running or not."""
    filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
    params = {"all": "1", "filters": filters}
    found = await ask(engine, "GET", "/containers/json", "the list of containers", params=params, patience=_PATIENCE)
    return [
        ListedContainer(container["Id"], text(container.get("State")), texts(container.get("Labels")))
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

    An alternative is a tuple of directories, of which `describe` makes a description (Engine API, "Create a
    container") with `bind_mounts`.  Returns the container's ID and the directories.
    """
    for directories in alternatives[:-1]:
        try:
            return await _create(engine, name, describe(directories)), directories
        except EngineUnavailable:
            raise
        except EngineError as error:
            if error.status != 400:  # 400: a mount of a directory that is not there
                raise
    return await _create(engine, name, describe(alternatives[-1])), alternatives[-1]


async def _create(engine: IEngineRequests, name: str, description: Mapping[str, Any]) -> str:
    data, headers = json.dumps(description).encode(), {"Content-Type": "application/json"}
    made = mapping(
        await ask(
            engine,
            "POST",
            "/containers/create",
            params={"name": name},
            data=data,
            headers=headers,
            patience=_PATIENCE,
        )
    )
    if not text(made.get("Id")):
        raise EngineError("the engine does not tell the ID of the container that it created")
    return text(made.get("Id"))


def bind_mounts(directories: tuple[str, ...]) -> list[dict[str, Any]]:
    """Describe directories of the engine's host that a container has as /0, /1 and so on, to be read only.

    Mounts, not Binds: a directory that is not there is refused and not made.  Not recursive: what other containers have
    mounted below is none of k3dreg's business.
    """
    return [
        {
            "Type": "bind",
            "Source": directory,
            "Target": f"/{number}",
            "ReadOnly": True,
            "BindOptions": {"NonRecursive": True},
        }
        for number, directory in enumerate(directories)
    ]


async def start(engine: IEngineRequests, container: str) -> None:
    """Start a container."""
    await ask(engine, "POST", f"/containers/{container}/start", patience=_PATIENCE)


async def wait(engine: IEngineRequests, container: str) -> None:
    """Return when a container has ended."""
    await ask(engine, "POST", f"/containers/{container}/wait", patience=_PATIENCE)


async def remove(engine: IEngineRequests, container: str) -> None:
    """Remove a container, also one that runs.  One that is gone, or is being removed, is no error."""
    try:
        await ask(engine, "DELETE", f"/containers/{container}", params={"force": "1", "v": "1"}, patience=_PATIENCE)
    except EngineError as error:
        if error.status not in (404, 409):
            raise


def parse_container(told: object) -> Container:
    """Return the container of an answer to `GET /containers/{name}/json`."""
    described = mapping(told)
    config, network = mapping(described.get("Config")), mapping(described.get("NetworkSettings"))
    bindings = mapping(mapping(described.get("HostConfig")).get("PortBindings"))
    return Container(
        name=text(described.get("Name")).lstrip("/"),
        status=text(mapping(described.get("State")).get("Status")),
        hostname=text(config.get("Hostname")),
        labels=texts(config.get("Labels")),
        tcp_ports=(*_tcp_ports(mapping(network.get("Ports"))), *_tcp_ports(bindings)),
        aliases=tuple(
            str(alias)
            for joined in mapping(network.get("Networks")).values()
            if isinstance(aliases := mapping(joined).get("Aliases"), list)
            for alias in aliases
        ),
    )


def _tcp_ports(bindings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Docker writes `{"5000/tcp": [{"HostPort": "5005"}]}`."""
    for name, targets in bindings.items():
        port, _, protocol = name.partition("/")
        if protocol in ("", "tcp") and isinstance(targets, list):
            for target in targets:
                # Port 0 is "any", written where the container was made; what was chosen is in NetworkSettings.
                if (chosen := str(mapping(target).get("HostPort") or "0")) != "0":
                    yield port, chosen
