"""An engine in memory that speaks the Engine API, for tests.

It is held to what real engines do by tests/integration/test_engine_contract.py, which runs against both.

    fake = FakeEngine(ImageStore.CONTAINERD)
    fake.add(make_image("docker.io/library/hello:1"))
    fake.upstream["docker.io/library/other:2"] = make_image("docker.io/library/other:2")
    engine = fake.client(Clock())

With `client` or `agent` everything happens in memory, at once, and without back-pressure.  `fake.site` can be listened
with on a real socket.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Literal

from attrs import Factory, define, evolve, frozen
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from twisted.web.server import Request, Site
from zope.interface import implementer

from k3dreg.docker.client import SILENCE, EngineClient
from k3dreg.docker.image import ImageStore
from k3dreg.oci.digest import Digest
from tests.fakes.archives import Layout, build_archive, layout_of
from tests.fakes.containers import FakeContainer, FakeContainers, event_of
from tests.fakes.engine_api import EngineResource
from tests.fakes.images import FakeImage, familiar


@frozen
class PullError:
    """A pull that fails: with an HTTP status, or with 200 and the error in the progress stream."""

    status: int
    message: str


@frozen
class SaveFault:
    """What befalls the next saves after `after` bytes of the archive.

    "error": the engine's error JSON is glued on and the answer ends normally; "truncate": the answer ends normally;
    "cut": the connection is lost; "stall": nothing more comes until `FakeEngine.stall` is opened.
    """

    kind: Literal["error", "truncate", "cut", "stall"]
    after: int = 0


class Gate:
    """What requests wait at while it is shut."""

    def __init__(self, opened: Callable[[], None]) -> None:
        self._opened = opened
        self._waiting: list[Callable[[], object]] = []
        self._shut = False

    def shut(self) -> None:
        self._shut = True

    def open(self) -> None:
        self._shut = False
        waiting, self._waiting = self._waiting, []
        for proceed in waiting:
            proceed()
        self._opened()

    def passed(self, proceed: Callable[[], object]) -> None:
        """Call `proceed` now, or when the gate is opened."""
        if self._shut:
            self._waiting.append(proceed)
        else:
            proceed()


@define
class FakeEngine:
    """See the module.  Everything public is for tests to read and, but for the counts, to set."""

    store: ImageStore = ImageStore.CONTAINERD
    api: str = "1.51"
    min_api: str = "1.24"
    version: str = "28.5.2"
    engine_id: str = "fake-engine"
    # Names with what a pull of them brings.
    upstream: dict[str, FakeImage | PullError] = Factory(dict)
    # Down: connections are refused.
    down: bool = False
    save_fault: SaveFault | None = None
    # What it says its time is (RFC 3339), "" for nothing; and its answers to a GET of other paths.
    time: str = ""
    others: dict[str, object] = Factory(dict)
    # Images that BuildKit made here, by their roots.
    built: set[Digest] = Factory(set)
    # Names of which it does not say what they are in their registry: it waits for that itself.
    silent: set[str] = Factory(set)
    # Pulls are cut off in the middle.
    cut_pulls: bool = False
    pulls_go_on: bool = False  # their streams never end
    # The registries that it asks before Docker Hub.
    mirrors: tuple[str, ...] = ()
    # Nobody may listen to events.
    keeps_to_itself: bool = False

    # Counts: the names asked for, in order.
    pings: int = 0
    infos: int = 0
    inspects: list[str] = Factory(list)
    saves: list[str] = Factory(list)
    pulls: list[str] = Factory(list)
    distributions: list[str] = Factory(list)
    auths: list[str | None] = Factory(list)  # the X-Registry-Auth of each pull
    agents: list[str | None] = Factory(list)  # the User-Agent of each request
    abandoned: list[str] = Factory(list)  # paths of requests whose client went away

    # Shut: inspections have looked, and their answers wait.
    inspect_gate: Gate = Factory(lambda self: Gate(self.flush), takes_self=True)
    pull_gate: Gate = Factory(lambda self: Gate(self.flush), takes_self=True)
    save_gate: Gate = Factory(lambda self: Gate(self.flush), takes_self=True)
    stall: Gate = Factory(lambda self: Gate(self.flush), takes_self=True)

    listeners: list[Request] = Factory(list)  # of events
    containers: FakeContainers = Factory(FakeContainers)

    _tags: dict[str, FakeImage] = Factory(dict)
    _pulled: dict[str, FakeImage] = Factory(dict)  # name@digest of what was pulled
    _images: list[FakeImage] = Factory(list)
    _live: set[Request] = Factory(set)
    _traversal: RequestTraversalAgent | None = None
    _site: Site | None = None

    def __attrs_post_init__(self) -> None:
        self._site = Site(EngineResource(self), parsePOSTFormSubmission=False)

    # -- images ---------------------------------------------------------------------------------

    def add(self, image: FakeImage, *names: str) -> FakeImage:
        """Hold the image under its own name, and under `names`, too; what had these names loses them."""
        for name in (image.name, *names):
            self._tags[normal(name)] = image
        self._images.append(image)
        self.tell("load", str(image.id(self.store)), str(image.id(self.store)))
        return image

    def tag(self, source: str, name: str) -> None:
        """`docker tag`."""
        image = self._tags[normal(name)] = self._tags[normal(source)]
        self.tell("tag", str(image.id(self.store)), self.shown(normal(name)))

    def tell(self, action: str, actor: str, name: str) -> None:
        """Those who listen to events hear of one."""
        self._tell({"Type": "image", "Action": action, "Actor": {"ID": actor, "Attributes": {"name": name}}})

    def tell_of(self, container: FakeContainer, action: str) -> None:
        """Those who listen to events hear of a container's."""
        self._tell(event_of(container, action))

    def _tell(self, event: Mapping[str, object]) -> None:
        for listener in self.listeners[:]:
            kinds = json.loads((listener.args or {}).get(b"filters", [b"{}"])[0]).get("type", [event["Type"]])
            if event["Type"] in kinds:
                listener.write(json.dumps(event).encode() + b"\n")
        self.flush()

    def replace(self, image: FakeImage) -> None:
        """Hold another state of the image (its platforms, its blobs) under the same ID."""
        for names in (self._tags, self._pulled):
            names.update({n: image for n, old in names.items() if old.root == image.root})
        self._images = [image if old.root == image.root else old for old in self._images]

    def remove(self, image: FakeImage) -> None:
        """`docker rmi -f` of the image's ID."""
        for names in (self._tags, self._pulled):
            for name in [n for n, old in names.items() if old.root == image.root]:
                del names[name]
        self._images = [old for old in self._images if old.root != image.root]

    def find(self, name: str) -> FakeImage | None:
        """The image by ID, by tag or by digest, as engines with this store find it."""
        if name.startswith("sha256:"):
            return next((i for i in reversed(self._images) if str(i.id(self.store)) == name), None)
        if self.store is ImageStore.PODMAN and f"localhost/{name}" in self._tags:
            return self._tags[f"localhost/{name}"]  # a name without a registry is one of its own first
        name = normal(name)
        repository, at, digest = name.partition("@")
        if not at:
            return self._tags.get(name)
        if self.store is ImageStore.CONTAINERD:
            for tag, image in self._tags.items():
                if tag.rpartition(":")[0] == repository and str(image.root.digest) == digest:
                    return image
        return self._pulled.get(name)

    def names_of(self, image: FakeImage) -> tuple[list[str], list[str]]:
        """The image's tags and its `name@digest`s."""
        tags = [name for name, other in self._tags.items() if other is image]
        digests = [name for name, other in self._pulled.items() if other is image]
        if self.store is ImageStore.CONTAINERD:
            digests += [f"{tag.rpartition(':')[0]}@{image.root.digest}" for tag in tags]
        return tags, sorted(set(digests))

    def identity(self, image: FakeImage) -> dict[str, object]:
        """Where the image came from, as Docker 29.2 and later tell it for the containerd store."""
        pulled = {name.partition("@")[0] for name, other in self._pulled.items() if other.root == image.root}
        told: dict[str, object] = {}
        if pulled:
            told["Pull"] = [{"Repository": re.sub(r"^([^/]+?):[0-9]+/", r"\1/", name)} for name in sorted(pulled)]
        if image.root.digest in self.built:
            told["Build"] = [{"Ref": "default/default/x"}]
        return told

    def archive(self, image: FakeImage, *, named: bool = False) -> bytes:
        """What a save of the image gives."""
        return build_archive(image, self.layout, named=named)

    @property
    def layout(self) -> Layout:
        major, _, minor = self.api.partition(".")
        return layout_of(self.store, (int(major), int(minor)))

    def pull_now(self, name: str) -> PullError | None:
        """Bring in what `upstream` has by this name; the error if it has none."""
        name = normal(name)
        there = {normal(known): what for known, what in self.upstream.items()}
        found = there.get(name)
        repository, at, digest = name.partition("@")
        if found is None and at:
            found = next((i for n, i in there.items() if _matches(n, i, repository, digest)), None)
        if found is None:
            texts = {
                ImageStore.CONTAINERD: f'failed to resolve reference "{name}": {name}: not found',
                ImageStore.CLASSIC: f"manifest for {name} not found: manifest unknown: manifest unknown",
                ImageStore.PODMAN: "manifest unknown: manifest unknown",
            }
            return PullError(404, texts[self.store])
        if isinstance(found, PullError):
            return found
        image = found if at else evolve(found, name=name)
        self._images.append(image)
        if not at:
            self._tags[name] = image
            repository = name.rpartition(":")[0]
            self.tell("pull", self.shown(name), self.shown(repository))
        self._pulled[f"{repository}@{image.root.digest}"] = image
        return None

    def published(self, name: str) -> FakeImage | PullError:
        """What `upstream` has by this name."""
        found = {normal(known): what for known, what in self.upstream.items()}.get(normal(name))
        return PullError(404, "manifest unknown: manifest unknown") if found is None else found

    def listing(self) -> list[dict[str, object]]:
        """As much of `GET /images/json` as is asked for."""
        return [
            {"Id": str(image.id(self.store)), "RepoTags": [self.shown(name)], "Size": image.root.size, "Created": 0}
            for name, image in self._tags.items()
        ]

    def shown(self, name: str) -> str:
        """A name as this engine writes it: Podman in full."""
        return name if self.store is ImageStore.PODMAN else familiar(name)

    # -- connections ----------------------------------------------------------------------------

    @property
    def site(self) -> Site:
        """The engine as a server factory, for a real socket."""
        assert self._site is not None
        return self._site

    def agent(self) -> IAgent:
        """A client whose requests go here, in memory."""
        if self._traversal is None:
            self._traversal = RequestTraversalAgent(EngineResource(self))
        return _Agent(self, self._traversal)

    def client(self, clock: IReactorTime, *, silence: float = SILENCE) -> EngineClient:
        """k3dreg's own client, connected here in memory."""
        return EngineClient(self.agent(), clock, silence=silence, description="fake")

    def flush(self) -> None:
        """Move what was written since to the clients in memory."""
        if self._traversal is not None:
            self._traversal.flush()

    def began(self, request: Request, path: str) -> None:
        """A request came; its end, when its client leaves, is noted."""
        self._live.add(request)

        def ended(result: object) -> None:
            self._live.discard(request)
            if result is not None:
                self.abandoned.append(path)

        request.notifyFinish().addBoth(ended)

    def cut(self) -> None:
        """Lose all connections that are in the middle of something, as a killed engine does."""
        for request in list(self._live):
            if request.channel is not None:
                request.channel.loseConnection()
        self.flush()


@implementer(IAgent)
class _Agent:
    def __init__(self, engine: FakeEngine, agent: RequestTraversalAgent) -> None:
        self._engine = engine
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        if self._engine.down:
            return fail(Refused())
        response: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
        return response


def normal(name: str) -> str:
    """A name in full, as Docker's `distribution/reference` takes it: registry, `library/`, `latest`."""
    name, at, digest = name.partition("@")
    first, slash, _ = name.partition("/")
    if not (slash and (first == "localhost" or "." in first or ":" in first)):
        name = f"docker.io/{name}"
    if name.startswith("docker.io/") and name.count("/") == 1:
        name = name.replace("/", "/library/", 1)
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, "latest"
    return f"{path}@{digest}" if at else f"{path}:{tag}"


def _matches(name: str, image: FakeImage | PullError, repository: str, digest: str) -> bool:
    same = name.rpartition(":")[0] == repository
    return same and isinstance(image, FakeImage) and image.root.digest == Digest.parse(digest)
