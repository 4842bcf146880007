"""Containers of an engine in memory: their files, networks, and commands run in them."""

from __future__ import annotations

import base64
import io
import json
import posixpath
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

from attrs import Factory, define
from twisted.web.iweb import IBodyProducer, IResponse

from k3dreg.docker.container_files import SmallFile
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.streaming.content import IByteStream
from tests.fakes.body import FakeBody


@define
class FakeContainer:
    """A container.  `networks` are those that it is in, with its aliases there; `mounts` pairs of paths.

    `does` is what a command does that is no script of k3dreg's own: it returns the status and both outputs.
    """

    name: str
    labels: dict[str, str] = Factory(dict)
    files: dict[str, SmallFile] = Factory(dict)
    directories: set[str] = Factory(set)
    networks: dict[str, list[str]] = Factory(dict)
    state: str = "running"
    image: str = "rancher/k3s"
    hostname: str = ""
    ports: tuple[str, ...] = ()
    address: str = ""
    mounts: tuple[tuple[str, str], ...] = ()
    does: Callable[[Sequence[str]], tuple[int, str, str]] = lambda words: (0, "", "")

    @property
    def id(self) -> str:
        return f"{self.name.encode().hex():0>64}"[-64:]

    def text(self, path: str) -> str | None:
        file = self.files.get(path)
        return None if file is None else file.data.decode()

    def put(self, path: str, text: str) -> None:
        self.files[path] = SmallFile(text.encode())

    def has_directory(self, path: str) -> bool:
        return path in self.directories or any(name.startswith(f"{path}/") for name in self.files)


class Refused(Exception):
    """The engine refuses: with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@define
class FakeContainers:
    """All containers of an engine.

    `reach` says what a node gets from an address of k3dreg: the status and the output of the attempt.
    """

    all: dict[str, FakeContainer] = Factory(dict)
    gateways: dict[str, str] = Factory(dict)
    reach: Callable[[FakeContainer, str, int], tuple[int, str]] = lambda node, host, port: (1, "connection refused")
    executed: list[tuple[str, Sequence[str]]] = Factory(list)
    written: list[tuple[str, str]] = Factory(list)  # the container and the path of each write
    _ended: list[tuple[int, str, str]] = Factory(list)

    def add(self, container: FakeContainer) -> FakeContainer:
        self.all[container.name] = container
        return container

    def answer(self, method: str, path: Sequence[str], asked: Mapping[str, str], body: bytes) -> object:
        """Return a JSON value, bytes of an archive with its stat, or the output of a command.  Raises `Refused`."""
        match method, path:
            case "GET", ["containers", "json"]:
                every = asked.get("all") == "1"
                return [self._listed(each) for each in self.all.values() if every or each.state == "running"]
            case "GET", ["containers", name, "json"]:
                return self._described(self._found(name))
            case "GET" | "HEAD", ["containers", name, "archive"]:
                return _archive(self._found(name), asked["path"])
            case "PUT", ["containers", name, "archive"]:
                return self._extract(self._found(name), asked["path"], body)
            case "POST", ["containers", name, "exec"]:
                return self._execute(self._found(name), json.loads(body)["Cmd"])
            case "POST", ["exec", number, "start"]:
                _, out, error = self._ended[int(number)]
                return Output(_frame(1, out) + _frame(2, error))
            case "GET", ["exec", number, "json"]:
                return {"ExitCode": self._ended[int(number)][0], "Running": False}
            case "POST", ["networks", network, "connect"]:
                asked_for = json.loads(body)
                joined = self._found(asked_for["Container"])
                if network in joined.networks:
                    raise Refused(403, f"endpoint with name {joined.name} already exists in network {network}")
                joined.networks[network] = list(asked_for["EndpointConfig"]["Aliases"])
                return {}
            case "POST", ["networks", network, "disconnect"]:
                if network not in (left := self._found(json.loads(body)["Container"])).networks:
                    raise Refused(500, f"container {left.id} is not connected to network {network}")
                del left.networks[network]
                return {}
        raise Refused(404, "page not found")

    def _found(self, name: str) -> FakeContainer:
        for container in self.all.values():
            if name in (container.id, container.name) or (container.hostname and name == container.hostname):
                return container
        raise Refused(404, f"No such container: {name}")

    def _networks(self, container: FakeContainer) -> dict[str, Any]:
        return {
            name: {"Aliases": aliases, "Gateway": self.gateways.get(name, ""), "IPAddress": container.address}
            for name, aliases in container.networks.items()
        }

    def _listed(self, container: FakeContainer) -> dict[str, Any]:
        return {
            "Id": container.id,
            "Names": [f"/{container.name}"],
            "Image": container.image,
            "Command": "",
            "Labels": container.labels,
            "State": container.state,
            "NetworkSettings": {"Networks": self._networks(container)},
        }

    def _described(self, container: FakeContainer) -> dict[str, Any]:
        return {
            "Id": container.id,
            "Name": f"/{container.name}",
            "State": {"Status": container.state, "Pid": 42 if container.state == "running" else 0},
            "Config": {"Hostname": container.hostname, "Labels": container.labels},
            "HostConfig": {"PortBindings": {f"{port}/tcp": [{"HostPort": "5005"}] for port in container.ports}},
            "NetworkSettings": {"Networks": self._networks(container)},
            "Mounts": [
                {"Type": "bind", "Source": source, "Destination": destination}
                for source, destination in container.mounts
            ],
        }

    def _extract(self, container: FakeContainer, directory: str, body: bytes) -> object:
        if not container.has_directory(directory):
            raise Refused(404, f"Could not find the file {directory} in container {container.name}")
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            for member in archive:
                path, file = posixpath.join(directory, member.name), archive.extractfile(member)
                assert file is not None
                container.files[path] = SmallFile(file.read(), member.mode, member.uid, member.gid)
                self.written.append((container.name, path))
        return {}

    def _execute(self, container: FakeContainer, words: Sequence[str]) -> object:
        if container.state != "running":
            raise Refused(409, f"container {container.name} is not running")
        self.executed.append((container.name, words))
        self._ended.append(self._run(container, words))
        return {"Id": str(len(self._ended) - 1)}

    def _run(self, container: FakeContainer, words: Sequence[str]) -> tuple[int, str, str]:
        match words:
            case ["sh", "-c", script, "sh", directory] if script.startswith("mkdir -p"):
                container.directories.add(directory)
                return 0, "", ""
            case ["sh", "-c", script, "sh", directory] if script.startswith("rmdir"):
                container.directories.discard(directory)
                return 0, "", ""
            case ["sh", "-c", script, "sh", *paths] if script.startswith("rm -f"):
                for path in paths:
                    container.files.pop(path, None)
                return 0, "", ""
            case ["sh", "-c", script, "sh", old, new] if script.startswith("mv -f"):
                container.files[new] = container.files.pop(old)
                return 0, "", ""
            case ["sh", "-c", script, "sh", host, port] if "/healthz" in script:
                status, said = self.reach(container, host, int(port))
                return status, said, ""
        return container.does(words)


@define
class Output:
    """The output of a command, as the engine frames it."""

    data: bytes


@define
class Archive:
    """A tar archive, and the stat of the file in it."""

    data: bytes
    stat: str


def _frame(stream: int, text: str) -> bytes:
    data = text.encode()
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data if data else b""


def _archive(container: FakeContainer, path: str) -> Archive:
    file = container.files.get(path)
    if file is None and container.has_directory(path):
        out, member = io.BytesIO(), tarfile.TarInfo(posixpath.basename(path))
        member.type = tarfile.DIRTYPE
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(member)
        return Archive(out.getvalue(), "")
    if file is None:
        raise Refused(404, f"Could not find the file {path} in container {container.name}")
    out, member = io.BytesIO(), tarfile.TarInfo(posixpath.basename(path))
    member.size, member.mode, member.uid, member.gid = len(file.data), file.mode, file.user, file.group
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(member, io.BytesIO(file.data))
    stat = {"name": member.name, "size": member.size, "mode": file.mode, "linkTarget": ""}
    return Archive(out.getvalue(), base64.b64encode(json.dumps(stat).encode()).decode())


class ContainerRequests:
    """An engine that only has containers (`IEngineRequests`), without HTTP: what `FakeEngine` says over the wire."""

    def __init__(self) -> None:
        self.containers = FakeContainers()
        self.down = False
        self.refuses_events = False
        self._events: list[FakeBody] = []

    def tell_of(self, container: FakeContainer, action: str) -> None:
        """Those who listen to events hear of a container's."""
        for events in self._events:
            events.feed(json.dumps(event_of(container, action)).encode() + b"\n")

    def cut(self) -> None:
        """The engine ends: it cannot be reached, and its streams end."""
        self.down = True
        events, self._events = self._events, []
        for each in events:
            each.end()

    async def info(self) -> EngineInfo:
        return EngineInfo("", "", (1, 51), ImageStore.CONTAINERD, "", "")

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | IBodyProducer | None = None,
        versioned: bool = True,
        max_wait: float | None = None,
    ) -> IResponse:
        if self.down:
            raise EngineUnavailable("the engine is down")
        if path == "/events":
            if self.refuses_events:
                raise EngineError("authorization denied by plugin", status=403)
            self._events.append(FakeBody(open_ended=True))
            return cast(IResponse, self._events[-1])
        asked = {name: str(value) for name, value in (params or {}).items()}
        words = [unquote(word) for word in path.strip("/").split("/")]
        try:
            told = self.containers.answer(method, words, asked, data if isinstance(data, bytes) else b"")
        except Refused as refused:
            raise EngineError(str(refused), status=refused.status) from refused
        answer = told.data if isinstance(told, Archive | Output) else json.dumps(told).encode()
        return cast(IResponse, FakeBody([answer]))

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        return cast(IByteStream, response)


def event_of(container: FakeContainer, action: str) -> Mapping[str, object]:
    """The event of an action on a container."""
    attributes = {"name": container.name, "image": container.image, **container.labels}
    return {"Type": "container", "Action": action, "Actor": {"ID": container.id, "Attributes": attributes}}
