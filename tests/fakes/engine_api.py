"""The wire side of the engine in memory: paths, JSON, streams."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from twisted.internet.interfaces import IPushProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from k3dreg.docker.image import ImageStore
from k3dreg.oci.digest import Digest
from tests.fakes.archives import Layout
from tests.fakes.containers import Archive, Output, Refused
from tests.fakes.images import FakeImage, FakeVariant, familiar

if TYPE_CHECKING:
    from tests.fakes.engine import FakeEngine

_CHUNK = 32 * 1024  # as Docker writes its archives


class EngineResource(Resource):
    """All of the API that k3dreg uses."""

    isLeaf = True  # noqa: N815

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__()
        self._engine = engine

    def render(self, request: Request) -> int:
        engine, path = self._engine, unquote(request.path.decode())
        if engine.down:
            request.channel.loseConnection()
            return NOT_DONE_YET
        engine.began(request, path)
        engine.agents.append(request.getHeader("user-agent"))
        for name, value in _headers(engine).items():
            request.setHeader(name, value)
        versioned = re.fullmatch(r"/v(\d+\.\d+)(/.*)", path)
        if versioned:
            refusal = _version_refusal(engine, versioned[1])
            if refusal:
                return _answer(request, 400, {"message": refusal})
            path = versioned[2]
        return self._dispatch(request, path, _number(versioned[1] if versioned else engine.api))

    def _dispatch(self, request: Request, path: str, api: tuple[int, int]) -> int:
        engine = self._engine
        asked = {key.decode(): values[0].decode() for key, values in (request.args or {}).items()}
        match request.method.decode(), path:
            case "GET", "/_ping":
                engine.pings += 1
                request.write(b"OK")
                request.finish()
                return NOT_DONE_YET
            case "GET", "/info":
                engine.infos += 1
                return _answer(request, 200, _info(engine, api))
            case "GET", "/version":
                return _answer(request, 200, _version(engine))
            case "GET", "/images/json":
                return _answer(request, 200, engine.listing())
            case "GET", "/events":
                return self._listen(request)
            case "POST", "/images/create":
                return self._pull(request, asked)
            case "GET", "/images/get":
                return self._save(request, asked.get("names", ""))
        if request.method == b"GET" and (one := re.fullmatch(r"/images/(.+)/(json|get)", path)):
            if one[2] == "get":
                return self._save(request, one[1])
            return self._inspect(request, one[1], api, "manifests" in asked)
        if request.method == b"POST" and (one := re.fullmatch(r"/images/(.+)/tag", path)):
            engine.tag(one[1], f"{asked['repo']}:{asked['tag']}")
            return _answer(request, 201, {})
        if request.method == b"GET" and (one := re.fullmatch(r"/distribution/(.+)/json", path)):
            return self._distribution(request, one[1])
        if request.method == b"GET" and path in engine.others:
            return _answer(request, 200, engine.others[path])
        if path.startswith(("/containers/", "/exec/", "/networks/")):
            return self._answer_of_containers(request, path, asked)
        return _answer(request, 404, {"message": "page not found"})

    def _answer_of_containers(self, request: Request, path: str, asked: Mapping[str, str]) -> int:
        words = path.strip("/").split("/")
        assert request.content is not None
        try:
            told = self._engine.containers.answer(request.method.decode(), words, asked, request.content.read())
        except Refused as refused:
            return _answer(request, refused.status, {"message": str(refused)})
        if isinstance(told, Archive):
            request.setHeader("Content-Type", "application/x-tar")
            request.setHeader("X-Docker-Container-Path-Stat", told.stat)
            request.write(b"" if request.method == b"HEAD" else told.data)
        elif isinstance(told, Output):
            request.setHeader("Content-Type", "application/vnd.docker.raw-stream")
            request.write(told.data)
        else:
            return _answer(request, 200, told)
        request.finish()
        return NOT_DONE_YET

    def _listen(self, request: Request) -> int:
        engine = self._engine
        if engine.keeps_to_itself:
            return _answer(request, 403, {"message": "authorization denied by plugin"})
        request.setHeader("Content-Type", "application/json")
        request.write(b"")
        engine.listeners.append(request)
        request.notifyFinish().addBoth(lambda _: engine.listeners.remove(request))
        return NOT_DONE_YET

    def _distribution(self, request: Request, name: str) -> int:
        engine = self._engine
        engine.distributions.append(name)
        if name in engine.silent:
            return NOT_DONE_YET
        if engine.store is ImageStore.PODMAN:
            request.setResponseCode(404)
            request.write(b"Not Found\n")
            request.finish()
            return NOT_DONE_YET
        found = engine.published(name)
        if isinstance(found, FakeImage):
            return _answer(request, 200, {"Descriptor": found.root.to_json(), "Platforms": []})
        return _answer(request, found.status if found.status >= 400 else 500, {"message": found.message})

    def _inspect(self, request: Request, name: str, api: tuple[int, int], children: bool) -> int:
        engine = self._engine
        engine.inspects.append(name)
        if name != name.lower() and ":" not in name and engine.store is ImageStore.PODMAN:
            message = f'normalizing image: parsing reference "{name}": repository name must be lowercase'
            return _answer(request, 500, {"message": message})
        if name != name.lower() and ":" not in name:
            return _answer(request, 400, {"message": "invalid reference format: repository name must be lowercase"})
        image = engine.find(name)
        if image is None:
            return _answer(request, 404, {"message": f"No such image: {familiar(name)}"})
        told = _image(engine, image, api, children)
        engine.inspect_gate.passed(lambda: _answer(request, 200, told))
        return NOT_DONE_YET

    def _save(self, request: Request, name: str) -> int:
        engine = self._engine
        engine.saves.append(name)
        image = engine.find(name)
        if image is None:
            # Engine 20.10 and Podman say 500; classic stores tell a path.
            status = 500 if engine.layout in (Layout.LEGACY, Layout.PODMAN) else 404
            if engine.store is ImageStore.CONTAINERD:
                return _answer(request, status, {"message": f"No such image: {name}"})
            if engine.store is ImageStore.PODMAN:
                return _answer(request, status, {"message": f"docker.io/library/{name}: image not known"})
            path = f"/var/lib/docker/image/overlay2/imagedb/content/sha256/{name.rpartition(':')[2]}"
            message = f"failed to get digest {name}: open {path}: no such file or directory"
            return _answer(request, status, {"message": message})
        archive = engine.archive(image, named=not name.startswith("sha256:"))
        engine.save_gate.passed(lambda: self._send_archive(request, archive))
        return NOT_DONE_YET

    def _send_archive(self, request: Request, archive: bytes) -> None:
        request.setHeader("Content-Type", "application/x-tar")
        fault = self._engine.save_fault
        if fault is None:
            _Sender(request, archive, request.finish)
            return

        def befall() -> None:
            match fault.kind:
                case "error":
                    error = {"errorDetail": {"message": "write: broken"}, "error": "write: broken"}
                    request.write(json.dumps(error).encode() + b"\r\n")
                    request.finish()
                case "truncate":
                    request.finish()
                case "cut":
                    request.channel.loseConnection()
                case "stall":
                    self._engine.stall.shut()
                    self._engine.stall.passed(lambda: _Sender(request, archive[fault.after :], request.finish))

        _Sender(request, archive[: fault.after], befall)

    def _pull(self, request: Request, asked: Mapping[str, str]) -> int:
        engine = self._engine
        tag = asked.get("tag", "")
        name = f"{asked['fromImage']}{'@' if ':' in tag else ':'}{tag}" if tag else asked["fromImage"]
        engine.pulls.append(name)
        engine.auths.append(request.getHeader("x-registry-auth"))
        engine.pull_gate.passed(lambda: self._send_pull(request, name))
        return NOT_DONE_YET

    def _send_pull(self, request: Request, name: str) -> None:
        if request.channel is None:  # the client left, so the engine gave it up
            return
        error = self._engine.pull_now(name)
        if error is not None and error.status != 200:
            _answer(request, error.status, {"message": error.message})
            return
        request.setHeader("Content-Type", "application/json")
        messages: list[dict[str, Any]] = [{"status": f"Pulling from {name}", "id": "1"}]
        if error is not None:
            messages.append({"errorDetail": {"message": error.message}, "error": error.message})
        elif (image := self._engine.find(name)) is not None:
            messages += _progress(image.best)
            messages += [{"status": f"Digest: {image.root.digest}"}, {"status": "Status: Downloaded newer image"}]
        for message in messages:
            request.write(json.dumps(message).encode() + b"\r\n")
            if self._engine.cut_pulls:
                request.channel.loseConnection()
                return
        if not self._engine.pulls_go_on:
            request.finish()


@implementer(IPushProducer)
class _Sender:
    """Writes `data` in the engine's chunks at the client's pace, then calls `done`."""

    def __init__(self, request: Request, data: bytes, done: Callable[[], object]) -> None:
        self._request = request
        self._data = memoryview(data)
        self._done = done
        self._paused = False
        self._gone = False
        request.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        while self._data and not self._paused and not self._gone:
            chunk, self._data = self._data[:_CHUNK], self._data[_CHUNK:]
            self._request.write(bytes(chunk))
        if not self._data and not self._paused and not self._gone:
            self._gone = True
            self._request.unregisterProducer()
            self._done()

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._gone = True


def _progress(variant: FakeVariant) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for layer in dict.fromkeys(variant.layers):  # a layer that is there twice is pulled once
        size, name = len(layer.blob), layer.descriptor.digest.short
        messages += [
            {"status": "Pulling fs layer", "progressDetail": {}, "id": name},
            {"status": "Downloading", "progressDetail": {"current": size // 2, "total": size}, "id": name},
            {"status": "Download complete", "progressDetail": {"hidecounts": True}, "id": name},
            {"status": "Pull complete", "progressDetail": {"hidecounts": True}, "id": name},
        ]
    return messages


def _image(engine: FakeEngine, image: FakeImage, api: tuple[int, int], children: bool) -> dict[str, Any]:
    tags, digests = engine.names_of(image)
    complete = any(map(image.is_complete, image.variants))
    containerd = engine.store is ImageStore.CONTAINERD
    answer: dict[str, Any] = {
        "Id": str(image.id(engine.store)),
        "RepoTags": [engine.shown(name) for name in tags],
        "RepoDigests": [engine.shown(name) for name in digests],
        "Os": image.best.platform.os if complete else "",
        "Architecture": image.best.platform.architecture if complete else "",
        "Size": sum(map(len, image.contents.values() if containerd else (layer.diff for layer in image.best.layers))),
        "RootFS": {},
    }
    if complete:
        layers = [str(layer.diff_id) for layer in image.best.layers]
        answer["RootFS"] = {"Type": "layers", "Layers": layers}
    if not containerd or api < (1, 52):
        answer["GraphDriver"] = {"Name": _driver(engine), "Data": None}
    if containerd and api >= (1, 48):
        answer["Descriptor"] = image.root.to_json()
        if children:
            answer["Manifests"] = [_child(image, variant) for variant in image.variants]
    if containerd and api >= (1, 53) and (identity := engine.identity(image)):
        answer["Identity"] = identity
    return answer


def _child(image: FakeImage, variant: FakeVariant) -> dict[str, Any]:
    held = {Digest.of(variant.manifest), *variant.contents} if image.is_held(variant) else ()
    return {
        "ID": str(Digest.of(variant.manifest)),
        "Descriptor": variant.descriptor.to_json(),
        "Available": image.is_complete(variant),
        "Size": {"Content": sum(len(image.contents.get(digest, b"")) for digest in held)},
        "Kind": "image",
    }


def _driver(engine: FakeEngine) -> str:
    return {ImageStore.CONTAINERD: "overlayfs", ImageStore.CLASSIC: "overlay2"}.get(engine.store, "overlay")


def _info(engine: FakeEngine, api: tuple[int, int]) -> dict[str, Any]:
    containerd = engine.store is ImageStore.CONTAINERD
    answer: dict[str, Any] = {
        "ID": str(uuid.uuid4()) if engine.store is ImageStore.PODMAN else engine.engine_id,
        "Driver": _driver(engine),
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]] if containerd else [["Backing", "extfs"]],
        "DockerRootDir": "/var/lib/docker",
        "ServerVersion": engine.version,
        "OSType": "linux",
        "RegistryConfig": {"Mirrors": list(engine.mirrors)},
    }
    if engine.time:
        answer["SystemTime"] = engine.time
    if api >= (1, 46):
        answer["Containerd"] = {"Address": "/run/containerd/containerd.sock"}
    return answer


def _version(engine: FakeEngine) -> dict[str, Any]:
    name = "Podman Engine" if engine.store is ImageStore.PODMAN else "Engine"
    return {
        "Version": engine.version,
        "ApiVersion": engine.api,
        "MinAPIVersion": engine.min_api,
        "Components": [{"Name": name, "Version": engine.version}],
    }


def _headers(engine: FakeEngine) -> dict[str, str]:
    headers = {"Api-Version": engine.api, "Ostype": "linux", "Server": f"Docker/{engine.version} (linux)"}
    if engine.store is ImageStore.PODMAN:
        headers["Libpod-API-Version"] = engine.version
    return headers


def _version_refusal(engine: FakeEngine, asked: str) -> str:
    if _number(asked) > _number(engine.api):
        return f"client version {asked} is too new. Maximum supported API version is {engine.api}"
    if _number(asked) < _number(engine.min_api):
        return f"client version {asked} is too old. Minimum supported API version is {engine.min_api}"
    return ""


def _number(version: str) -> tuple[int, int]:
    """`1.51` as numbers; what is no version, as a test may set it, is none."""
    major, _, minor = version.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _answer(request: Request, status: int, value: object) -> int:
    request.setResponseCode(status)
    request.setHeader("Content-Type", "application/json")
    request.write(json.dumps(value).encode() + b"\n")
    request.finish()
    return NOT_DONE_YET
