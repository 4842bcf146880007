"""What a pull answers, for every combination of what decides it.

Each row of a table is a situation.  Its cells are the statuses of six requests, for each of which the situation is
made anew: by tag and by digest, and each of these by `GET`, by a node's `HEAD` and by a push tool's `HEAD`.  The whole
daemon runs in this process and is asked over HTTP; the engine is the one in memory (`tests/fakes/engine.py`), on a UNIX
socket.  So nothing here depends on how k3dreg is built.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from attrs import field, frozen
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred

from k3dreg.config.options import Options
from k3dreg.daemon.service import Daemon
from k3dreg.docker.image import ImageStore
from k3dreg.oci.digest import Digest
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import FakeImage, lose, make_image
from tests.fakes.pushing import CONFIG, image
from tests.fakes.upstream import FakeUpstream
from tests.fakes.wire import WireTestCase, request

reactor: Any = _reactor

OWN = "own.example:5000"
ELSEWHERE = "registry.example"
# containerd's resolver and pusher (`core/remotes/docker`).
NODE = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
)
PUSH_TOOL = "application/vnd.oci.image.manifest.v1+json, */*"
CLIENTS = (("GET", NODE), ("HEAD", NODE), ("HEAD", PUSH_TOOL))

# How the request names the image `app`; OWN is one of k3dreg's names, ELSEWHERE another registry.
ASKED = {
    "own": "/v2/{app}/manifests/{target}",
    "own by ns": f"/v2/{{app}}/manifests/{{target}}?ns={OWN}",
    "other by ns": f"/v2/{{app}}/manifests/{{target}}?ns={ELSEWHERE}",
    "other twice": f"/v2/{ELSEWHERE}/{{app}}/manifests/{{target}}?ns={ELSEWHERE}",
    "other in path": f"/v2/{ELSEWHERE}/{{app}}/manifests/{{target}}",
    "hub by ns": "/v2/library/{app}/manifests/{target}?ns=docker.io",
    "hub in path": "/v2/docker.io/library/{app}/manifests/{target}",
}
# Under which name Docker holds it.
HELD = {
    "bare": "docker.io/library/{app}:1",
    "tagged own": f"{OWN}/{{app}}:1",
    "other": f"{ELSEWHERE}/{{app}}:1",
    "tagged own/other": f"{OWN}/{ELSEWHERE}/{{app}}:1",
    "lost a layer": f"{ELSEWHERE}/{{app}}:1",
    "arm64": f"{ELSEWHERE}/{{app}}:1",
}
# What the registry answers to Docker's pull, or what befalls Docker; "has it" and "-" (it lacks it) aside.
REFUSALS = {
    "wants login": PullError(500, "no basic auth credentials"),
    "denies": PullError(500, "denied: requested access to the resource is denied"),
    "counts": PullError(500, "toomanyrequests: You have reached your pull rate limit"),
    "is away": PullError(500, "Get https://registry.example/v2/: dial tcp 192.0.2.1:443: connect: no route to host"),
    "disk full": PullError(200, "write /layer.tar: no space left on device"),
}

# Docker with the containerd store, and no options.  `-` in a cell: that request is not made.
CONTAINERD = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    own            | yes    | -                | -           |      200 200 200   |         200 200 200
    own            | yes    | bare             | -           |      200 200 200   |         200 200 200
    own            | yes    | tagged own       | -           |      200 200 200   |         200 200 200
    own by ns      | yes    | -                | -           |      200 200 200   |         200 200 200
    own            | -      | bare             | -           |      200 200 404   |         200 200 404
    own            | -      | tagged own       | -           |      200 200 404   |         200 200 404
    own by ns      | -      | bare             | -           |      200 200 404   |         200 200 404
    own by ns      | -      | tagged own       | -           |      200 200 404   |         200 200 404
    own            | -      | -                | has it      |      404 404 404   |         404 404 404
    own by ns      | -      | -                | has it      |      404 404 404   |         404 404 404
    own            | -      | -                | docker down |      404 404 404   |         404 404 404
    other by ns    | -      | other            | -           |      200 200 200   |         200 200 200
    other by ns    | -      | other            | is away     |      200 200 200   |         200 200 200
    other by ns    | -      | arm64            | is away     |      200 200 200   |         200 200 200
    other by ns    | -      | lost a layer     | is away     |      404 404 404   |         404 404 404
    other by ns    | -      | bare             | -           |      404 404 404   |         404 404 404
    other by ns    | -      | tagged own       | -           |      404 404 404   |         404 404 404
    other by ns    | -      | -                | has it      |      200 200 200   |         200 200 200
    other by ns    | -      | -                | -           |      404 404 404   |         404 404 404
    other by ns    | -      | -                | wants login |      401 401 401   |         401 401 401
    other by ns    | -      | -                | denies      |      401 401 401   |         401 401 401
    other by ns    | -      | -                | counts      |      503 503 503   |         503 503 503
    other by ns    | -      | -                | is away     |      502 502 502   |         502 502 502
    other by ns    | -      | -                | disk full   |      502 502 502   |         502 502 502
    other by ns    | -      | -                | docker down |      503 503 503   |         503 503 503
    other by ns    | yes    | -                | -           |      404 404 404   |         404 404 404
    other twice    | -      | other            | -           |      200 200 200   |         200 200 200
    other twice    | -      | -                | has it      |      200 200 200   |         200 200 200
    other twice    | -      | -                | -           |      404 404 404   |         404 404 404
    other in path  | yes    | -                | -           |      200 200 200   |         200 200 200
    other in path  | yes    | other            | has it      |      200 200 200   |         200 200 200
    other in path  | -      | tagged own/other | -           |      200 200 404   |         200 200 404
    other in path  | -      | other            | -           |      200 200 404   |         200 200 404
    other in path  | -      | -                | has it      |      200 200 404   |         200 200 404
    other in path  | -      | -                | -           |      404 404 404   |         404 404 404
    other in path  | -      | -                | wants login |      401 401 404   |         401 401 404
    other in path  | -      | -                | disk full   |      502 502 404   |         502 502 404
    hub in path    | -      | bare             | -           |      200 200 404   |         200 200 404
    hub by ns      | -      | bare             | -           |      200 200 200   |         200 200 200
"""

# The classic store and Podman keep no manifest of a registry, so no digest of one.
CLASSIC = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    own            | yes    | -                | -           |      200 200 200   |         200 200 200
    own            | yes    | bare             | -           |      200 200 200   |         200 200 200
    own            | -      | bare             | -           |      200 200 404   |         404 404 404
    own            | -      | tagged own       | -           |      200 200 404   |         404 404 404
    own            | -      | -                | has it      |      404 404 404   |         404 404 404
    other by ns    | -      | other            | -           |      200 200 200   |         404 404 404
    other by ns    | -      | -                | has it      |      200 200 200   |         404 404 404
    other by ns    | -      | -                | -           |      404 404 404   |         404 404 404
    other by ns    | -      | -                | wants login |      401 401 401   |         404 404 404
    other by ns    | -      | -                | counts      |      503 503 503   |         404 404 404
    other by ns    | -      | -                | is away     |      502 502 502   |         404 404 404
    other by ns    | -      | -                | disk full   |      502 502 502   |         404 404 404
    other in path  | yes    | other            | has it      |      200 200 200   |         200 200 200
    other in path  | -      | other            | -           |      200 200 404   |         404 404 404
    other in path  | -      | -                | has it      |      200 200 404   |         404 404 404
"""

# With credentials in the request: one that is refused all the same is not challenged again.
SHOWN = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    other by ns    | -      | -                | wants login |      401 401 401   |         401 401 401
    other by ns    | -      | -                | denies      |      403 403 403   |         403 403 403
    other by ns    | -      | -                | has it      |      200 200 200   |         200 200 200
"""

# Docker, whose registry mirror k3dreg is, asks because k3dreg asked it to pull.
CIRCULAR = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    own            | yes    | -                | -           |      200 200 200   |         200 200 200
    own            | -      | bare             | -           |      404 404 404   |         404 404 404
    other by ns    | -      | other            | has it      |      404 404 404   |         404 404 404
    other by ns    | -      | -                | has it      |      404 404 404   |         404 404 404
    other in path  | -      | -                | has it      |      404 404 404   |         404 404 404
"""

# `--origin-fallback`: what Docker cannot give by digest comes from the registry, which is on a port of this machine.
FALLBACK_CLASSIC = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    own            | -      | bare             | has it      |      200 200 404   |         404 404 404
    own            | -      | -                | has it      |      404 404 404   |         404 404 404
    other by ns    | -      | other            | has it      |      200 200 200   |         200 200 200
    other by ns    | -      | -                | has it      |      200 200 200   |         200 200 200
    other by ns    | -      | -                | -           |      404 404 404   |         404 404 404
    other twice    | -      | other            | has it      |      200 200 200   |         200 200 200
    other in path  | -      | other            | has it      |      200   -   -   |         200   -   -
    other in path  | -      | -                | -           |      404   -   -   |         404   -   -
"""
FALLBACK_CONTAINERD = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    other by ns    | -      | other            | -           |      200 200 200   |         200 200 200
    other by ns    | -      | -                | has it      |      200 200 200   |         200 200 200
    other by ns    | -      | lost a layer     | -           |      404 404 404   |         404 404 404
    other by ns    | -      | -                | -           |      404 404 404   |         404 404 404
"""

# `--proxy-remote-url https://docker.io`: one registry's images alone.
ONE_REMOTE = """
    asked          | pushed | Docker holds     | registry    | tag: GET node push | digest: GET node push
    own            | yes    | -                | -           |      200 200 200   |         200 200 200
    own            | -      | tagged own       | -           |      200 200 404   |         200 200 404
    own            | -      | bare             | -           |      200 200 404   |         200 200 404
    own by ns      | -      | -                | has it      |      404 404 404   |         404 404 404
    hub by ns      | -      | bare             | -           |      200 200 200   |         200 200 200
    hub by ns      | -      | -                | has it      |      200 200 200   |         200 200 200
    hub by ns      | -      | -                | -           |      404 404 404   |         404 404 404
    hub by ns      | -      | -                | wants login |      401 401 401   |         401 401 401
    hub in path    | -      | -                | has it      |      200 200 404   |         200 200 404
    own            | -      | -                | hub has it  |      200 200 404   |         200 200 404
    own            | -      | -                | wants login |      404 404 404   |         404 404 404
    other by ns    | -      | other            | has it      |      404 404 404   |         404 404 404
    other by ns    | -      | -                | has it      |      404 404 404   |         404 404 404
    other twice    | -      | other            | has it      |      404 404 404   |         404 404 404
    other in path  | -      | other            | has it      |      404 404 404   |         404 404 404
    other in path  | -      | -                | has it      |      404 404 404   |         404 404 404
    other in path  | yes    | -                | -           |      200 200 200   |         200 200 200
"""

# What a digest is answered just after a pull of a tag of its repository failed, and whether Docker pulls again for it.
AFTERWARDS = """
    the registry | digest | pulled again
    -            | 404    | no
    wants login  | 404    | no
    denies       | 404    | no
    counts       | 404    | no
    is away      | 502    | no
    disk full    | 502    | yes
"""

# `--refresh '*'`, with the containerd store: which image a tag means by a GET, whether k3dreg asks the image's registry
# what it is there now, and whether Docker pulls it again.  Docker's copy: `pulled`, because k3dreg wanted it, an hour
# ago; `just pulled`; `built` here; `rebuilt`, after the pull.  After `counts` the registry is left alone.
REFRESH = """
    asked          | pushed | Docker's copy | registry    | gets       | asks | pulls
    other by ns    | -      | pulled        | has newer   | registry's | yes  | yes
    other by ns    | -      | pulled        | has it      | Docker's   | yes  | no
    other by ns    | -      | pulled        | lost it     | Docker's   | yes  | no
    other by ns    | -      | pulled        | wants login | Docker's   | yes  | no
    other by ns    | -      | pulled        | has a pull that fails | Docker's | yes | yes
    other by ns    | -      | just pulled   | has newer   | Docker's   | no   | no
    other by ns    | -      | built         | has newer   | Docker's   | no   | no
    other by ns    | -      | rebuilt       | has newer   | Docker's   | no   | no
    other twice    | -      | pulled        | has newer   | registry's | yes  | yes
    other in path  | -      | pulled        | has newer   | registry's | yes  | yes
    own            | -      | built         | has newer   | Docker's   | no   | no
    own by ns      | -      | built         | has newer   | Docker's   | no   | no
    own            | yes    | built         | has newer   | pushed     | no   | no
    other by ns    | -      | pulled        | counts      | Docker's   | yes  | no
    other by ns    | -      | pulled        | has newer   | Docker's   | no   | no
"""


@frozen
class Row:
    """A situation, and the statuses of the six requests in it."""

    asked: str
    pushed: bool
    held: str
    registry: str
    statuses: tuple[str, ...]
    text: str = field(eq=False)


def rows(table: str) -> Iterator[Row]:
    for line in table.strip().splitlines()[1:]:
        asked, pushed, held, registry, by_tag, by_digest = (cell.strip() for cell in line.split("|"))
        yield Row(asked, pushed == "yes", held, registry, (*by_tag.split(), *by_digest.split()), line.strip())


class PullTable(WireTestCase):
    """One daemon with its engine.  `elsewhere` is what ELSEWHERE stands for."""

    timeout = 120

    origin: FakeUpstream | None = None
    elsewhere = ELSEWHERE

    async def start_with_fallback(self, store: ImageStore) -> None:
        """k3dreg asks a registry on a port of this machine, which it does without TLS."""
        origin = self.origin = FakeUpstream()
        origin.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
        self.elsewhere = origin.host
        await self.start(store, "--origin-fallback")

    async def start(self, store: ImageStore, *options: str) -> None:
        # Podman's API is an older one.
        self.engine = FakeEngine(store, "1.44" if store is ImageStore.PODMAN else "1.51")
        # Of a registry that Docker has an image of, a client is told why a pull failed.
        self.engine.add(make_image(f"{self.elsewhere}/known:1"))
        self.options, self.count = options, 0
        here = Path.cwd()
        self.patch(os, "environ", {**os.environ, "DOCKER_CONFIG": str(here), "HOME": str(here)})
        socket = reactor.listenUNIX(str(here / "engine"), self.engine.site)
        self.addCleanup(socket.stopListening)
        parsed = Options({})
        parsed.parseOptions(
            [
                *("--listen", "tcp:0:interface=127.0.0.1", "--alias", OWN, "--state-dir", str(here / "state")),
                *("--docker", f"unix://{here}/engine", "--docker-root", "/nonexistent"),
                *("--content-store", "/nonexistent", "--reader", "off", *options),
            ]
        )
        daemon = Daemon(parsed, reactor)
        daemon.startService()
        self.addCleanup(daemon.stopService)
        while not (listening := [line for line in self.lines if "listening on" in line]):
            self.assertNotIn("cannot start", "".join(self.lines))
            await self.turn()
        self.wire = await self.connect(int(listening[0].rpartition(":")[2]))

    async def check(self, table: str, **headers: str) -> None:
        """Make every request of the table, and tell of all rows that are not so."""
        wrong = []
        for row in rows(table):
            got = []
            for number, expected in enumerate(row.statuses):
                client, by_digest = CLIENTS[number % 3], number >= 3
                got.append("-" if expected == "-" else await self.ask(row, *client, by_digest, headers))
            if tuple(got) != row.statuses:
                wrong.append(f"{row.text}\n    but {' '.join(got[:3])} | {' '.join(got[3:])}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    async def ask(self, row: Row, method: str, accept: str, by_digest: bool, headers: Mapping[str, str]) -> str:
        """The status of one request, in the row's situation made anew; what must hold of any answer is checked."""
        self.count += 1
        app = f"app{self.count}"
        root = self.arrange(row, app)
        if row.pushed:
            root = await self.push(self.spelled(ASKED[row.asked]).split("/manifests/")[0].format(app=app), app)
        path = self.spelled(ASKED[row.asked]).format(app=app, target=str(root) if by_digest else "1")
        self.engine.down = row.registry == "docker down"
        before = len(self.engine.pulls)
        answer = await self.wire.ask(method, path, Accept=accept, **headers)
        self.engine.down = False
        told = f"{row.text}: {method} {path}: {answer}"
        if answer.status == 200:
            digest = answer.headers["docker-content-digest"]
            self.assertGreater(int(answer.headers["content-length"]), 0, told)
            self.assertIn("application/vnd.oci.image.", answer.headers["content-type"], told)
            # The classic store and Podman keep no manifest: k3dreg makes one, and it has a digest of its own.
            if row.pushed or by_digest or self.engine.store is ImageStore.CONTAINERD:
                self.assertEqual(digest, str(root), told)
            if method == "GET":
                self.assertEqual(str(Digest.of(answer.body)), digest, told)
                await self.follow(path, answer.body, told)
        elif method == "GET":
            self.assertTrue(json.loads(answer.body)["errors"][0]["message"], told)
        is_own = row.asked.startswith("own") and "--proxy-remote-url" not in self.options
        if is_own or ((row.pushed or row.held != "-") and answer.status == 200):
            self.assertEqual(self.engine.pulls[before:], [], f"pulled for {told}")
        return str(answer.status)

    async def follow(self, path: str, manifest: bytes, told: str) -> None:
        """What a manifest lists is had under the same name."""
        document = json.loads(manifest)
        for part in [document["config"], *document["layers"]] if "config" in document else []:
            at, question, ns = path.partition("?")
            blob = f"{at.rpartition('/manifests/')[0]}/blobs/{part['digest']}{question}{ns}"
            answer = await self.wire.ask("GET", blob)
            self.assertEqual((answer.status, str(Digest.of(answer.body))), (200, part["digest"]), told)

    def spelled(self, text: str) -> str:
        return text.replace(ELSEWHERE, self.elsewhere)

    def arrange(self, row: Row, app: str) -> Digest:
        """Make the engine and the registry as the row says; the digest that the image has there."""
        hub = "hub" in row.asked or "hub" in row.registry or row.asked.startswith("own")
        name = f"docker.io/library/{app}:1" if hub else f"{self.elsewhere}/{app}:1"
        made = make_image(name, labels={"app": app})
        if row.registry.endswith("has it"):
            self.engine.upstream[name] = made
            self.publish(made)
        elif row.registry in REFUSALS:
            for each in (name, f"{name.rpartition(':')[0]}@{made.root.digest}"):
                self.engine.upstream[each] = REFUSALS[row.registry]
        if row.held == "-":
            return made.root.digest
        called = self.spelled(HELD[row.held]).format(app=app)
        if row.held == "arm64":
            made = make_image(called, platforms=["linux/amd64", "linux/arm64"], held=["linux/arm64"], labels={"a": app})
        held = FakeImage(called, made.variants, made.index, made.held)
        if row.held == "lost a layer":
            held = lose(held, made.best.layers[0].descriptor.digest)
        self.engine.add(held)
        return held.root.digest

    def publish(self, made: FakeImage) -> None:
        """For the registry that k3dreg itself asks, in the tests of `--origin-fallback`."""
        if self.origin is not None:
            self.origin.add_manifest(made.root.media_type, made.root_bytes)
            for data in made.contents.values():
                self.origin.add_blob(data)

    async def push(self, base: str, app: str) -> Digest:
        """An image of one blob, tagged `1`, into the repository at `base`."""
        data = image(annotations={"app": app})
        blob = f"{base}/blobs/uploads/?digest={Digest.of(CONFIG)}"
        for method, path, body in (("POST", blob, CONFIG), ("PUT", f"{base}/manifests/1", data)):
            head = request(method, path, Content_Length=str(len(body)), Content_Type=json.loads(data)["mediaType"])
            self.wire.transport.write(head + body)
            self.assertEqual((await self.wire.response()).status, 201)
        return Digest.of(data)

    async def test_the_containerd_store(self) -> None:
        await self.start(ImageStore.CONTAINERD)
        await self.check(CONTAINERD)

    async def test_the_classic_store(self) -> None:
        await self.start(ImageStore.CLASSIC)
        await self.check(CLASSIC)

    async def test_podman(self) -> None:
        await self.start(ImageStore.PODMAN)
        await self.check(CLASSIC)

    async def test_the_classic_store_with_origin_fallback(self) -> None:
        await self.start_with_fallback(ImageStore.CLASSIC)
        await self.check(FALLBACK_CLASSIC)

    async def test_the_containerd_store_with_origin_fallback(self) -> None:
        await self.start_with_fallback(ImageStore.CONTAINERD)
        await self.check(FALLBACK_CONTAINERD)

    async def test_credentials_that_were_shown_are_not_asked_for_again(self) -> None:
        await self.start(ImageStore.CONTAINERD)
        await self.check(SHOWN, Authorization="Basic dXNlcjpwYXNzd29yZA==")

    async def test_docker_that_asks_on_k3dregs_behalf_gets_nothing_of_its_own(self) -> None:
        await self.start(ImageStore.CONTAINERD)
        await self.check(" a|p|h|r|t|d\n own | - | bare | - | 200 200 404 | 200 200 404")
        (ours,) = {agent for agent in self.engine.agents if agent}
        await self.check(CIRCULAR, User_Agent=f"docker/28.5.2 go/go1.24 UpstreamClient({ours})")

    async def test_only_what_a_registry_refused_is_remembered(self) -> None:
        await self.start(ImageStore.CONTAINERD)
        for number, line in enumerate(AFTERWARDS.strip().splitlines()[1:]):
            registry, status, again = (cell.strip() for cell in line.split("|"))
            app = f"app{number}"
            root = self.arrange(Row("other by ns", False, "-", registry, (), line), app)
            await self.wire.ask("GET", ASKED["other by ns"].format(app=app, target="1"))
            before = len(self.engine.pulls)
            answer = await self.wire.ask("GET", ASKED["other by ns"].format(app=app, target=root))
            self.assertEqual(str(answer.status), status, line)
            self.assertEqual(len(self.engine.pulls) - before, int(again == "yes"), line)

    async def test_tags_that_have_moved(self) -> None:
        origin = self.origin = FakeUpstream()
        origin.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
        self.elsewhere = origin.host
        await self.start(ImageStore.CONTAINERD, "--refresh", "*=1h", "--allow-registry", "127.0.0.1:*")
        wrong = []
        for number, line in enumerate(REFRESH.strip().splitlines()[1:]):
            asked, pushed, held, registry, *expected = (cell.strip() for cell in line.split("|"))
            got = await self.refreshed(f"app{number}", asked, pushed == "yes", held, registry)
            if got != expected:
                wrong.append(f"{line.strip()}\n    but {' | '.join(got)}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    async def refreshed(self, app: str, asked: str, pushed: bool, held: str, registry: str) -> list[str]:
        """What a client gets, whether the registry is asked, and whether Docker pulls."""
        origin = self.origin
        assert origin is not None
        origin.status, origin.auth, origin.manifests = 0, "none", {}
        name = f"{OWN if asked.startswith('own') else self.elsewhere}/{app}:1"
        path = self.spelled(ASKED[asked]).format(app=app, target="1")
        old, newer = (make_image(name, labels={"is": f"{which} {app}"}) for which in ("old", "newer"))
        if held == "built":
            self.engine.add(old)
        else:
            self.engine.upstream[name] = old
            await self.wire.ask("GET", path, Accept=NODE)
        if held == "rebuilt":
            old = self.engine.add(make_image(name, labels={"is": f"mine {app}"}))
        if held != "just pulled":
            with contextlib.closing(sqlite3.connect("state/pushed.db")) as database, database:
                database.execute("UPDATE registry_tag SET asked = asked - 3600")
        there = old if registry == "has it" else newer
        self.engine.upstream[name] = there
        if registry != "lost it":
            origin.add_manifest(there.root.media_type, there.root_bytes, "1")
        if registry == "has a pull that fails":
            self.engine.upstream[name] = REFUSALS["disk full"]
        elif registry == "wants login":
            origin.auth = "basic"
        elif registry == "counts":
            origin.status = 429
        root = await self.push(path.split("/manifests/")[0], app) if pushed else None
        questions, pulls = len(origin.seen), len(self.engine.pulls)
        answer = await self.wire.ask("GET", path, Accept=NODE)
        known = {str(root): "pushed", str(old.root.digest): "Docker's", str(newer.root.digest): "registry's"}
        heads = [seen.method for seen in origin.seen[questions:]]
        self.assertLessEqual(set(heads), {"HEAD"})
        return [
            known.get(answer.headers.get("docker-content-digest", ""), str(answer)),
            "yes" if heads else "no",
            "yes" if self.engine.pulls[pulls:] else "no",
        ]

    async def test_no_existence_check_loses_a_push(self) -> None:
        """Every combination: under k3dreg's own names a push tool is told of what was pushed, and of nothing else."""
        await self.start(ImageStore.CONTAINERD)
        names = ("own", "own by ns", "other in path", "hub in path")
        for asked, held, registry, by_digest in product(names, ("-", *HELD), ("-", "has it"), (False, True)):
            row = Row(asked, False, held, registry, (), f"{asked} {held} {registry}")
            self.assertEqual(await self.ask(row, "HEAD", PUSH_TOOL, by_digest, {}), "404", row)

    async def test_one_remote_by_proxy_remote_url(self) -> None:
        await self.start(ImageStore.CONTAINERD, "--proxy-remote-url", "https://docker.io")
        await self.check(ONE_REMOTE)
