"""What k3dreg relies on in an engine, checked against the engine in memory and against real ones.

The fake stands for an engine in most tests; these keep it honest.  For the real ones:

    K3DREG_TEST_ENGINE=unix:///var/run/docker.sock pytest tests/integration/test_engine_contract.py

or K3DREG_TEST_ENGINES for several, and K3DREG_TEST_PODMAN for Podman's, as `.ci/engines` describes them.  They must
reach this machine's 127.0.0.1, and are given small images of names that begin with `k3dreg-contract`, which are removed
again.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from k3dreg.docker import containers, images
from k3dreg.docker.client import EngineClient
from k3dreg.docker.container_commands import Ended, run
from k3dreg.docker.container_files import SmallFile, read_file, write_file
from k3dreg.docker.endpoint import EngineAddress, make_agent, make_pool, parse_engine_url
from k3dreg.docker.events import follow_containers, follow_images
from k3dreg.docker.image import ImageStore
from k3dreg.engine_files.helper_objects import image_of_nothing
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    Denied,
    EngineError,
    EngineUnavailable,
    FileAbsent,
    ImageNotInEngine,
    K3dregError,
    ManifestUnknown,
    RateLimited,
    UpstreamFailed,
)
from k3dreg.registry.own_name_discovery import EngineImageNames
from k3dreg.streaming.response_body import read_whole
from tests.fakes.archives import build_archive, layout_of
from tests.fakes.containers import FakeContainer
from tests.fakes.engine import FakeEngine
from tests.fakes.images import FakeImage, familiar, make_image, make_layer
from tests.fakes.moody_registry import Answer, MoodyRegistry
from tests.fakes.tunnel import Tunnel
from tests.fakes.workers import InlineWorkers
from tests.integration.support import rig
from tests.integration.support.docker_api import Docker
from tests.integration.support.loading import load

_LIMIT = 100_000_000
_reactor: Any = global_reactor


class EngineContract:
    """The tests.  An engine is behind a tunnel, so that it can be lost."""

    engine: EngineClient
    tunnel: Tunnel
    case: TestCase

    async def hold(self, image: FakeImage) -> FakeImage:
        """Let the engine hold the image."""
        raise NotImplementedError

    async def start_container(self) -> str:
        """Start a container with the label `k3d.cluster=contract`, whose name begins with `k3dreg-contract-`."""
        raise NotImplementedError

    def an_image(self, **labels: str) -> FakeImage:
        """An image that no engine has had before; one of its layers is there twice, one is no smaller compressed."""
        small, large = make_layer({"hello": b"hello\n"}), make_layer({"noise": os.urandom(3_000_000)})
        name = f"docker.io/library/k3dreg-contract-{uuid.uuid4().hex[:12]}:1"
        return make_image(name, [small, large, small], labels=labels)

    async def archive_of(self, image: FakeImage) -> dict[str, bytes]:
        """The files of a save, by name, in order."""
        info = await self.engine.info()
        data = await read_whole(await self.engine.save(image.id(info.store)), _LIMIT)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = ((member.name, tar.extractfile(member)) for member in tar if member.isreg())
            return {name: file.read() for name, file in files if file is not None}

    async def fails(self, work: Awaitable[object], *kinds: type[BaseException]) -> Any:
        """The error that `work` fails with, which must be of one of these very kinds."""
        try:
            await work
        except kinds as error:
            self.case.assertIn(type(error), kinds, str(error))
            return error
        raise AssertionError(f"none of {kinds}")

    async def test_an_engine_says_what_it_is(self) -> None:
        info = await self.engine.info()
        self.case.assertGreaterEqual(info.api_version, (1, 41))
        self.case.assertTrue(info.version and info.driver and info.root_dir)
        self.case.assertEqual(bool(info.id), info.store is not ImageStore.PODMAN)

    async def test_an_image_that_was_loaded_is_what_it_was(self) -> None:
        image = await self.hold(self.an_image())
        info = await self.engine.info()
        found = await self.engine.inspect(image.name)
        self.case.assertEqual((found.id, found.store), (image.id(info.store), info.store))
        self.case.assertEqual(found.diff_ids, tuple(layer.diff_id for layer in image.best.layers))
        # Podman writes names in full.
        shown = image.name if info.store is ImageStore.PODMAN else familiar(image.name)
        self.case.assertEqual(found.tags, (shown,))
        self.case.assertEqual(str(found.platform), "linux/amd64")
        self.case.assertEqual(await self.engine.inspect(str(found.id)), found)

    async def test_the_root_of_an_image_is_told_by_containerd_stores_from_1_48(self) -> None:
        image = await self.hold(self.an_image())
        info = await self.engine.info()
        found = await self.engine.inspect(image.name)
        if info.store is ImageStore.CONTAINERD and info.api_version >= (1, 48):
            assert found.descriptor is not None
            self.case.assertEqual(
                (found.descriptor.media_type, found.descriptor.digest, found.descriptor.size),
                (image.root.media_type, image.root.digest, image.root.size),
            )
        else:
            self.case.assertIsNone(found.descriptor)

    async def test_an_unknown_image_is_not_in_the_engine(self) -> None:
        nothing = Digest.of(os.urandom(9))
        for name in (
            "k3dreg-contract-none:1",
            f"k3dreg-contract-none@{nothing}",
            str(nothing),
            "K3DREG/UPPER",
            "a/../b",
        ):
            await self.fails(self.engine.inspect(name), ImageNotInEngine)
        error = await self.fails(self.engine.save(nothing), ImageNotInEngine)
        self.case.assertNotIn("/", str(error))

    async def test_a_tag_that_was_moved_is_the_new_image_at_once(self) -> None:
        first = await self.hold(self.an_image())
        inspected = await self.engine.inspect(first.name)
        self.case.assertEqual(inspected.diff_ids[0], first.best.layers[0].diff_id)
        again = make_image(first.name, [make_layer({"new": b"new\n"})])
        await self.hold(again)
        info = await self.engine.info()
        self.case.assertEqual((await self.engine.inspect(first.name)).id, again.id(info.store))

    async def test_a_save_holds_the_config_and_every_layer(self) -> None:
        image = await self.hold(self.an_image())
        info = await self.engine.info()
        files = await self.archive_of(image)
        config, contents = image.best.config, set(files.values())
        self.case.assertIn(config, contents)
        for layer in image.best.layers:
            self.case.assertIn(layer.blob if info.store is ImageStore.CONTAINERD else layer.diff, contents)
        (listed,) = json.loads(files["manifest.json"])
        self.case.assertEqual(files[listed["Config"]], config)
        self.case.assertEqual(len(listed["Layers"]), 3)
        self.case.assertFalse(listed["RepoTags"])

    async def test_a_save_is_laid_out_as_the_fake_lays_it_out(self) -> None:
        image = await self.hold(self.an_image())
        info = await self.engine.info()
        files = await self.archive_of(image)
        with tarfile.open(fileobj=io.BytesIO(build_archive(image, layout_of(info.store, info.api_version)))) as tar:
            expected = [member.name for member in tar if member.isreg()]

        def settled(names: list[str]) -> list[str]:
            # The names of old metadata that nothing refers to are the engine's own invention.
            return [name for name in names if name in expected or "/" not in name]

        # Directories, and with them the config's place among them, go by IDs of the engine's own invention.
        def kinds(names: list[str]) -> list[str]:
            return [name.rpartition("/")[2] for name in names]

        names = list(files)
        if info.store is ImageStore.PODMAN:
            self.case.assertEqual(kinds(names), kinds(expected))
            return
        self.case.assertEqual(names, sorted(names))
        if info.store is ImageStore.CONTAINERD:
            self.case.assertEqual(names, expected)
        elif "oci-layout" in expected:
            # All but the metadata (and the manifest, of which older versions say a little more).
            kept = {*settled(names)}
            digests = {Digest.of(image.best.config), *(layer.diff_id for layer in image.best.layers)}
            wanted = {"index.json", "manifest.json", "oci-layout", *(f"blobs/sha256/{d.hex}" for d in digests)}
            self.case.assertLessEqual(wanted, kept)
        else:
            self.case.assertEqual(sorted(kinds(names)), sorted(kinds(expected)))

    async def test_an_engine_that_is_lost_in_the_middle_is_found_again(self) -> None:
        image = await self.hold(self.an_image())
        before = await self.engine.info()
        self.tunnel.cut_after = 1_000_000
        await self.fails(self.archive_of(image), EngineUnavailable)
        self.tunnel.cut_after = None
        self.case.assertEqual(await self.engine.info(), before)
        self.case.assertIn("manifest.json", await self.archive_of(image))

    async def test_a_save_that_is_not_wanted_any_more_does_no_harm(self) -> None:
        image = await self.hold(self.an_image())
        info = await self.engine.info()
        stream = await self.engine.save(image.id(info.store))
        self.case.assertTrue(await stream.read())
        stream.close()
        await self.fails(stream.read(), CancelledError)
        self.case.assertEqual((await self.engine.inspect(image.name)).id, image.id(info.store))

    async def test_a_file_of_a_container_is_written_and_read_with_its_owner(self) -> None:
        container = await self.start_container()
        await write_file(self.engine, container, "/etc", "k3dreg-contract", SmallFile(bytes(50_000)))
        await self.fails(read_file(self.engine, container, "/etc/k3dreg-contract", 4000), EngineError)
        is_podman = (await self.engine.info()).store is ImageStore.PODMAN
        for file in (SmallFile(b"old\n" * 1000, 0o600), SmallFile(b"new\n", 0o640, 7, 8)):
            await write_file(self.engine, container, "/etc", "k3dreg-contract", file)
            found = await read_file(self.engine, container, "/etc/k3dreg-contract", 4000)
            if is_podman and found is not None:  # it does not keep the owner
                found = evolve(found, user=file.user, group=file.group)
            self.case.assertEqual(found, file)
        self.case.assertIsNone(await read_file(self.engine, container, "/etc/k3dreg-none", 4000))
        await self.fails(read_file(self.engine, container, "/etc", 4000), EngineError)
        if not is_podman:  # which makes the directory
            await self.fails(write_file(self.engine, container, "/none", "x", SmallFile(b"")), FileAbsent)

    async def test_a_command_in_a_container_tells_its_status_and_what_it_printed(self) -> None:
        container = await self.start_container()
        ended = await run(self.engine, container, "sh", "-c", "echo out; echo error >&2; exit 3")
        self.case.assertEqual((ended.status, sorted(ended.output.split())), (3, ["error", "out"]))
        self.case.assertEqual(await run(self.engine, container, "sh", "-c", ":"), Ended(0, ""))

    async def test_a_container_is_listed_and_its_start_is_told_with_its_labels(self) -> None:
        heard: list[Mapping[str, str]] = []
        waiting: list[Deferred[None]] = []

        def hear(labels: Mapping[str, str]) -> None:
            heard.append(labels)
            if waiting:
                _reactor.callLater(0, waiting.pop().callback, None)

        async def told(label: str) -> None:
            while not any(labels.get("k3d.cluster", "") == label for labels in heard):
                waiting.append(Deferred())
                await waiting[-1]

        following = Deferred.fromCoroutine(follow_containers(self.engine, hear))
        following.addErrback(lambda failure: failure.trap(CancelledError) and None)
        await told("")
        container = await self.start_container()
        await told("contract")
        following.cancel()
        await following
        (listed,) = [each for each in await containers.listed(self.engine) if each.id == container]
        self.case.assertEqual((listed.state, listed.labels["k3d.cluster"]), ("running", "contract"))
        self.case.assertTrue(listed.name.startswith("k3dreg-contract-"))

    async def test_names_that_images_are_given_are_told(self) -> None:
        heard: list[str] = []
        waiting: list[Deferred[None]] = []

        def hear(name: str) -> None:
            heard.append(name)
            if waiting:
                # Not within the following, which could not be cancelled from there.
                _reactor.callLater(0, waiting.pop().callback, None)

        async def told(*names: str) -> None:
            while not set(names) & set(heard):
                waiting.append(Deferred())
                await waiting[-1]
            heard.clear()

        following = Deferred.fromCoroutine(follow_images(self.engine, hear))
        following.addErrback(lambda failure: failure.trap(CancelledError) and None)
        await told("")
        image = await self.hold(self.an_image())
        await told("")
        another = familiar(image.name).replace(":1", ":2")
        tagged = await self.engine.request(
            "POST", f"/images/{image.name}/tag", params={"repo": another.removesuffix(":2"), "tag": "2"}
        )
        await read_whole(self.engine.body(tagged, "an answer"), _LIMIT)
        # Podman tells the name in full.
        await told(another, f"docker.io/library/{another}", "")
        following.cancel()
        await following


class _Contract(EngineContract, TestCase):
    """What both kinds of engines need: a tunnel to a socket, and a client at its end."""

    timeout = 60

    def setUp(self) -> None:
        self.case = self
        self.directory = Path(tempfile.mkdtemp(prefix="k3dreg-"))
        self.addCleanup(self.directory.rmdir)

    async def listen(self, factory: Any, name: str) -> str:
        """Serve `factory` at a socket; its path."""
        path = self.directory / name
        port: IListeningPort = await UNIXServerEndpoint(_reactor, str(path)).listen(factory)
        self.addCleanup(port.stopListening)
        return str(path)

    async def connect(self, target: str) -> None:
        """Make `engine` a client of the engine whose socket is `target`."""
        self.tunnel = Tunnel(_reactor, target)
        pool = make_pool(_reactor)
        # Cleanups run last to first: the client's connections close, the tunnel's follow in the next turn.
        address = EngineAddress(path=await self.listen(self.tunnel, "tunnel"))
        self.addCleanup(lambda: deferLater(_reactor, 0.01, lambda: None))
        self.addCleanup(pool.closeCachedConnections)
        self.engine = EngineClient(make_agent(_reactor, address, pool=pool), _reactor, description="under test")


class _FakeContract(_Contract):
    fake: FakeEngine

    async def hold(self, image: FakeImage) -> FakeImage:
        return self.fake.add(image)

    async def start_container(self) -> str:
        def does(words: Sequence[str]) -> tuple[int, str, str]:
            return (3, "out\n", "error\n") if "exit 3" in words[-1] else (0, "", "")

        labels = {"k3d.cluster": "contract"}
        made = FakeContainer(f"k3dreg-contract-{uuid.uuid4().hex[:12]}", labels, directories={"/etc"}, does=does)
        self.fake.containers.add(made)
        self.fake.tell_of(made, "start")
        return made.id

    async def connect_fake(self, fake: FakeEngine) -> None:
        self.fake = fake
        await self.connect(await self.listen(fake.site, "engine"))


class FakeContainerdTests(_FakeContract):
    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        await self.connect_fake(FakeEngine())


class FakeClassicTests(_FakeContract):
    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        await self.connect_fake(FakeEngine(ImageStore.CLASSIC, "1.45"))


class FakeLegacyTests(_FakeContract):
    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        await self.connect_fake(FakeEngine(ImageStore.CLASSIC, "1.41"))


class FakePodmanTests(_FakeContract):
    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        await self.connect_fake(FakeEngine(ImageStore.PODMAN, "1.44"))


class _RealContract(_Contract):
    """A real engine, which also is made to pull from a registry in this process that refuses."""

    url = ""

    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        await self.connect(parse_engine_url(self.url).path)

    async def hold(self, image: FakeImage) -> FakeImage:
        info = await self.engine.info()
        archive = build_archive(image, layout_of(info.store, info.api_version), named=True)
        await load(self.engine, archive)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(str(image.id(info.store)))))
        return image

    async def start_container(self) -> str:
        return self.start_busybox()

    def start_busybox(self) -> str:
        docker, name = Docker(parse_engine_url(self.url).path), f"k3dreg-contract-{uuid.uuid4().hex[:12]}"
        busybox = Path(rig.setting("K3DREG_TEST_BUSYBOX")).read_bytes()
        dockerfile = b'FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /etc/busybox\nCMD ["/bin/sh", "-c", "read x"]\n'
        docker.build(name, {"Dockerfile": dockerfile, "busybox": busybox})
        self.addCleanup(docker.remove, name)
        body = {"Image": name, "OpenStdin": True, "Tty": True, "Labels": {"k3d.cluster": "contract"}}
        made: str = docker.ask(
            "POST", "/containers/create", {**body, "HostConfig": {"NetworkMode": "none"}}, name=name
        )["Id"]
        self.addCleanup(docker.ask, "DELETE", f"/containers/{made}", force="1", v="1")
        docker.ask("POST", f"/containers/{made}/start")
        return made

    async def remove(self, name: str) -> None:
        try:
            removed = await self.engine.request("DELETE", f"/images/{name}", params={"force": "1"})
        except EngineError as error:
            if error.status != 404:  # Engine 26.1 forgets an image that loses its last tag to another
                raise
        else:
            await read_whole(self.engine.body(removed, "a removal"), _LIMIT)

    async def test_images_are_listed_while_others_come_and_go(self) -> None:
        gone, listed, is_done = 0, 0, False

        async def come_and_go() -> None:
            nonlocal gone
            owner = uuid.uuid4().hex
            while not is_done:
                async with image_of_nothing(self.engine, "k3dreg-contract-gone", "test", owner):
                    pass
                gone += 1

        image = await self.hold(self.an_image())
        # Podman loses layers that are used anew while an image of theirs is removed, and is given none by k3dreg.
        count = 1 if (await self.engine.info()).store is ImageStore.PODMAN else 3
        going = DeferredList([Deferred.fromCoroutine(come_and_go()) for _ in range(count)], fireOnOneErrback=True)
        try:
            while not going.called and (listed <= 20 or gone <= 40):
                found = await EngineImageNames(self.engine, InlineWorkers()).names()
                names = [str(repository) for repository, _ in found]
                self.case.assertIn(familiar(image.name).partition(":")[0], " ".join(names))
                listed += 1
        finally:
            is_done = True
            await going

    async def test_images_are_found_by_a_label_those_without_a_name_too(self) -> None:
        label, name = f"k3dreg.contract-{uuid.uuid4().hex}", "k3dreg-contract-label:1"
        made = []
        for value in ("old", "new"):  # the second one takes the name
            made.append(await images.import_empty(self.engine, name, {label: value}))
            self.addCleanup(lambda: Deferred.fromCoroutine(self.remove(made.pop())))
        found = {image.id: image for image in await images.listed(self.engine, label=label)}
        self.case.assertEqual(found[made[1]].labels[label], "new")
        self.case.assertEqual([familiar(each).removeprefix("localhost/") for each in found[made[1]].names], [name])
        try:
            await self.engine.inspect(made[0])
        except ImageNotInEngine:  # some engines remove an image that has lost its name
            self.case.assertEqual(len(found), 1)
        else:
            self.case.assertEqual(found[made[0]].names, ())

    async def registry(self, registry: MoodyRegistry) -> str:
        """Serve the registry; a name in it."""
        port: Any = await TCP4ServerEndpoint(_reactor, 0, interface="127.0.0.1").listen(registry)
        self.addCleanup(port.stopListening)
        return f"127.0.0.1:{port.getHost().port}/k3dreg-contract:1"

    async def test_refusals_of_a_registry_are_told_apart(self) -> None:
        basic = (("WWW-Authenticate", 'Basic realm="x"'),)
        cases: list[tuple[Answer, *tuple[type[K3dregError], ...]]] = [
            (_error(404, "MANIFEST_UNKNOWN"), ManifestUnknown),
            (_error(404, "NAME_UNKNOWN"), ManifestUnknown),
            (Answer(404, (("Content-Type", "text/html"),), _PAGE), ManifestUnknown),
            (evolve(_error(401, "UNAUTHORIZED"), headers=basic), AuthenticationRequired),
            (_error(401, "UNAUTHORIZED"), AuthenticationRequired),
            # Classic stores say "pull access denied", which may mean that credentials are missing.
            (_error(403, "DENIED"), Denied, AuthenticationRequired),
            # Podman asks again by itself, at once if it is told to.
            (evolve(_error(429, "TOOMANYREQUESTS"), headers=(("Retry-After", "0"),)), RateLimited),
            (_error(500, "UNKNOWN"), UpstreamFailed),
        ]
        for answer, *kinds in cases:
            ping = evolve(answer, status=401) if answer.headers == basic else Answer(200)
            name = await self.registry(MoodyRegistry.saying(ping, {"/manifests/": answer}))
            error = await self.fails(self.engine.pull(name, "", lambda _: None), *kinds)
            self.assertTrue(str(error).isprintable())
        await self.fails(self.engine.pull("127.0.0.1:1/k3dreg-contract:1", "", lambda _: None), UpstreamFailed)

    async def test_cancelling_a_pull_makes_the_engine_hang_up_on_the_registry(self) -> None:
        image = self.an_image()
        manifest = image.best.manifest
        headers = (("Content-Type", media_types.OCI_MANIFEST), ("Docker-Content-Digest", str(image.root.digest)))
        answers = {str(digest): Answer(200, (), data) for digest, data in image.best.contents.items()}
        answers["/manifests/"] = Answer(200, headers, manifest)
        crawls = f"/blobs/{image.best.layers[1].descriptor.digest}"
        registry = MoodyRegistry.saying(Answer(200), answers, crawls)
        name = await self.registry(registry)
        pulling = Deferred.fromCoroutine(self.engine.pull(name, "", lambda _: None))
        await registry.crawling
        pulling.cancel()
        await self.fails(pulling, CancelledError)
        await registry.left  # the test's time limit is the assertion
        await self.fails(self.engine.inspect(name), ImageNotInEngine)


_PAGE = b"<html>\r\n<head><title>404 Not Found</title></head><body>nginx</body></html>"


def _error(status: int, code: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()
    return Answer(status, (("Content-Type", "application/json"),), body)


def _real_engines() -> dict[str, str]:
    return {engine.name: engine.url for engine in [*rig.engines(), *rig.podmans()]}


for _name, _url in _real_engines().items():
    _class = f"Real{_name.title().replace('-', '').replace('_', '')}Tests"
    globals()[_class] = pytest.mark.integration(type(_class, (_RealContract,), {"url": _url, "__module__": __name__}))


@pytest.mark.integration
@pytest.mark.skipif(bool(_real_engines()), reason="real engines are named, and tested")
def test_real_engines_are_named() -> None:
    rig.unavailable("neither K3DREG_TEST_ENGINE nor K3DREG_TEST_ENGINES is set:")


del _Contract, _FakeContract, _RealContract  # pytest would take them for tests of their own
