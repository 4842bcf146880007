"""An engine in memory as far as reading its files through containers goes."""

from __future__ import annotations

import base64
import fnmatch
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.streaming.content import IByteStream

ROOT = "/var/lib/docker"
CONTENT = f"{ROOT}/containerd/daemon/io.containerd.content.v1.content"
INFO = EngineInfo("an-engine", "28.5.2", (1, 51), ImageStore.CONTAINERD, "overlayfs", ROOT)


class _Response:
    def __init__(self, body: bytes | ArchiveStream, headers: Mapping[str, str] | None = None) -> None:
        self.body = body
        self.headers = Headers({name: [value] for name, value in (headers or {}).items()})


class ArchiveStream:
    """A body that gives `step` bytes at a time; once `held`, none until it is let go."""

    def __init__(self, data: bytes, step: int) -> None:
        self.closed = False
        self.held = False
        self.holds_at: int | None = None
        self.breaks_at: int | None = None
        self.data = data
        self._step = step
        self.at = 0
        self._waiting: Deferred[None] | None = None

    async def read(self, least: int = 1) -> bytes:
        if self.closed:
            raise CancelledError
        if self._waiting is not None:
            raise RuntimeError("a stream has one reader at a time")
        if self.held or (self.holds_at is not None and self.at >= self.holds_at):
            self._waiting = Deferred(lambda _: self.close())
            await self._waiting
        stop = self.at + self._step
        if self.breaks_at is not None and stop > self.breaks_at:
            raise EngineUnavailable("the connection to the engine was lost in the middle of a test")
        data = self.data[self.at : stop]
        self.at = stop
        return data

    @property
    def at_end(self) -> bool:
        """Whether all of it, and its end, was read."""
        return self.at > len(self.data)

    def let_go(self, until: int | None = None) -> None:
        self.held, self.holds_at = False, until
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def close(self) -> None:
        self.closed = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.errback(CancelledError())


class FakeArchiveApi:
    """Containers, an image, and the files of the host that the containers' mounts show.

    `streams` are the archives that are, or were, read.  Two at a time from one container fail the test.
    `run` is what a container does that is started: it is given the container's description.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.host = files
        self.directories = {CONTENT}
        self.engine_info = INFO
        self.containers: dict[str, dict[str, Any]] = {}
        self.images: dict[str, str] = {}
        self.told: dict[str, dict[str, Any]] = {}  # more that a list tells of an image, by its name
        self.asked: list[str] = []
        self.refuses = 0  # status of the answer to the creation of a container
        self.refuses_after = 99  # containers
        self.breaks_imports = False
        self.runs_on = False  # containers do not end
        self.run: Callable[[dict[str, Any]], object] | None = None
        self.down = False
        self.holds = False  # new archives are held
        self.step = 1000
        self.streams: list[ArchiveStream] = []
        self._reading: dict[str, ArchiveStream] = {}
        self._number = 0

    async def info(self) -> EngineInfo:
        if self.down:
            raise EngineUnavailable("the engine is down")
        return self.engine_info

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
        self.asked.append(f"{method} {path}")
        asked = {name: str(value) for name, value in (params or {}).items()}
        return cast(IResponse, self._answer(method, path.strip("/").split("/"), asked, data))

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        body = cast(_Response, response).body
        return ArchiveStream(body, 1000) if isinstance(body, bytes) else body

    def count(self, asked: str) -> int:
        return sum(line.startswith(asked) for line in self.asked)

    def _answer(self, method: str, path: list[str], params: dict[str, str], data: object) -> _Response:
        match method, path:
            case "POST", ["images", "create"]:
                if self.breaks_imports:
                    return _Response(b'{"errorDetail":{"message":"no space left"},"error":"no space left"}\r\n')
                name, identity = f"{params['repo']}:{params['tag']}", f"sha256:{self._new():064}"
                self.images[name] = identity
                labels = params["changes"].removeprefix("LABEL ").split()
                self.told[name] = {"Labels": dict(label.split("=") for label in labels)}
                return _json({"status": identity})
            case "GET", ["images", "json"]:
                told = [{"Id": i, "RepoTags": [name], **self.told.get(name, {})} for name, i in self.images.items()]
                filters = json.loads(params["filters"])
                for label in filters.get("label", ()):
                    told = [image for image in told if label in (image.get("Labels") or {})]
                for pattern in filters.get("reference", ()):
                    told = [image for image in told if fnmatch.filter(image["RepoTags"], pattern)]
                return _json(told)
            case "DELETE", ["images", wanted]:
                self.images = {name: other for name, other in self.images.items() if wanted not in (name, other)}
                return _json([])
            case "POST", ["containers", "create"]:
                return self._create(params["name"], json.loads(cast(bytes, data)))
            case "GET", ["containers", "json"]:
                wanted = json.loads(params["filters"])["label"]
                return _json(
                    [
                        {"Id": identity, "Labels": made["Labels"], "State": made["State"]}
                        for identity, made in self.containers.items()
                        if all(
                            f"{name}={made['Labels'].get(name)}" in wanted for name in ("k3dreg.role", "k3dreg.owner")
                        )
                    ]
                )
            case _, ["containers", identity, *rest]:
                if identity not in self.containers:
                    raise EngineError(f"No such container: {identity}", status=404)
                state = self.containers[identity]["State"]
                if method == "DELETE":
                    if state == "removing":
                        message = f"removal of container {identity} is already in progress"
                        raise EngineError(message, status=409)
                    del self.containers[identity]
                    return _Response(b"")
                if rest == ["json"]:
                    return _json({"Id": identity, **self.containers[identity], "State": {"Status": state}})
                if rest == ["start"]:
                    assert self.run is not None, "this container is never started"
                    self.containers[identity]["State"] = "running"
                    self.run(self.containers[identity])
                    return _Response(b"")
                if rest == ["wait"]:
                    ended = ArchiveStream(b'{"StatusCode": 0}', self.step)
                    ended.held = self.runs_on
                    return _Response(ended)
                if state == "removing":
                    raise EngineError(f"RWLayer of container {identity} is unexpectedly nil", status=500)
                return self._archive(method, identity, params["path"])
        raise AssertionError(f"nobody should ask for {method} {path}")

    def _create(self, name: str, wanted: dict[str, Any]) -> _Response:
        if self.refuses:
            raise EngineError("authorization denied by plugin", status=self.refuses)
        if len(self.containers) >= self.refuses_after:
            raise EngineError("no more containers", status=500)
        assert wanted["Image"] in self.images
        for mount in wanted["HostConfig"]["Mounts"]:
            # Only where layers are linked is there anything to write.
            assert mount["ReadOnly"] or wanted["Labels"]["k3dreg.role"] == "linking"
            if mount["Source"] not in self.directories:
                raise EngineError("invalid mount config: bind source path does not exist", status=400)
        identity = f"{self._new():064}"
        self.containers[identity] = {**wanted, "State": "created", "Name": name}
        return _json({"Id": identity, "Warnings": []})

    def _archive(self, method: str, identity: str, inside: str) -> _Response:
        mounts = self.containers[identity]["HostConfig"]["Mounts"]
        mount = next((m for m in mounts if inside == m["Target"] or inside.startswith(m["Target"] + "/")), None)
        assert mount is not None, f"{inside} is in no mount"
        path = mount["Source"] + inside.removeprefix(mount["Target"])
        below = {name: data for name, data in self.host.items() if name.startswith(path + "/")}
        if path not in self.host and path not in self.directories and not below:
            raise EngineError("" if method == "HEAD" else f"Could not find the file {inside}", status=404)
        busy = self._reading.get(identity)
        assert busy is None or busy.closed, "the engine would let this wait for the archive that is being read"
        if method == "HEAD":
            mode = 0o644 if path in self.host else 1 << 31 | 0o755
            told = {"name": "x", "size": len(self.host.get(path, b"")), "mode": mode, "linkTarget": ""}
            encoded = base64.b64encode(json.dumps(told).encode()).decode()
            return _Response(b"", {"X-Docker-Container-Path-Stat": encoded})
        name = path.rpartition("/")[2]
        entries = {name + key.removeprefix(path): data for key, data in sorted(below.items())} or {
            name: self.host[path]
        }
        stream = ArchiveStream(_tar(entries), self.step)
        stream.held = self.holds
        self.streams.append(stream)
        self._reading[identity] = stream
        return _Response(stream)

    def _new(self) -> int:
        self._number += 1
        return self._number


def _json(value: object) -> _Response:
    return _Response(json.dumps(value).encode())


def _tar(entries: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
