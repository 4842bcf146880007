"""The helper container that links layers, whose program runs beside the test; only the engine is one in memory."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files import directory_sender
from k3dreg.engine_files.own_container import OwnContainer
from k3dreg.linking import linkers, linking_helper
from k3dreg.linking.linkers import HelperLinkers, ILinker, LinkersHere, make_linkers
from k3dreg.linking.linking_errors import CannotLink
from tests.fakes.archive_api import INFO, FakeArchiveApi
from tests.fakes.linking import FakeLinker
from tests.fakes.logs import heard
from tests.fakes.workers import InlineWorkers

OWN = "a" * 64
IMAGE = "sha256:" + "b" * 64
NODE = Node("0123", "k3d-x-agent-0", os.getpid(), "/none/containerd.sock")


class Time:
    """The reactor, at the time that a test says it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def seconds(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class HelperLinkersTests(TestCase):
    def setUp(self) -> None:
        # The container in memory goes on after the end of its program.
        self.patch(linkers, "_MAX_STOP", 0.01)
        self.engine = FakeArchiveApi({})
        self.engine.images = {"k3dreg:latest": IMAGE, IMAGE: IMAGE}
        self.engine.containers[OWN] = {
            "State": "running",
            "Labels": {},
            "Image": IMAGE,
            "Config": {"Volumes": {"/var/lib/k3dreg": {}}},
            "HostConfig": {"Privileged": True, "UsernsMode": "host", "SecurityOpt": None},
        }
        self.engine.directories = {"/var/lib", INFO.root_dir, "/run/containerd", "/run/docker/containerd"}
        self.engine.run, self.engine.runs_on = self.run_container, True
        self.info = INFO
        self.started: list[dict[str, Any]] = []
        self.programs: list[Deferred[None]] = []
        self.time = Time()
        self.linkers = self.make(OWN)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.close()))

    def make(self, own: str, address: str = "/run/docker.sock") -> HelperLinkers:
        return HelperLinkers(self.engine, self.time, "owner", own, address)

    async def close(self) -> None:
        await self.linkers.close()
        for program in self.programs:
            await program

    def run_container(self, made: dict[str, Any]) -> None:
        """As the engine would, but where the engine's paths are this machine's."""
        self.started.append(made)
        [(variable, secret)] = [pair.split("=") for pair in made["Env"]]
        self.assertEqual(variable, directory_sender.SECRET)
        self.assertFalse(any(secret[:8] in word for word in made["Cmd"]))
        self.assertEqual(made["Cmd"][:3], ["-I", "-m", "k3dreg.linking.linking_helper"])
        program = deferToThread(linking_helper.main, secret, *made["Cmd"][3:])
        program.addErrback(lambda failure: failure.trap(OSError) and None)
        self.programs.append(program)

    async def get(self, info: EngineInfo | None = None) -> ILinker:
        return await self.linkers.get(info or self.info)

    async def fails(self, info: EngineInfo | None = None) -> str:
        try:
            await self.get(info)
        except CannotLink as error:
            self.assertEqual(list(self.engine.containers), [OWN])
            return str(error)
        raise AssertionError("it did not fail")

    async def test_the_container_does_the_work_until_it_is_closed(self) -> None:
        linker = await self.get()
        self.assertIs(await self.get(), linker)
        self.assertEqual(len(self.engine.containers), 2)
        with mock.patch("os.geteuid", return_value=0), self.assertRaisesRegex(CannotLink, "no containerd that k3dreg"):
            await deferToThread(linker.clean_up, NODE)
        await self.linkers.close()
        await self.programs[0]
        self.assertEqual(list(self.engine.containers), [OWN])

    async def test_the_container_has_the_rights_that_linking_needs_and_no_more(self) -> None:
        await self.get()
        (made,) = self.started
        host = made["HostConfig"]
        self.assertEqual((made["Image"], host["NetworkMode"]), (IMAGE, f"container:{OWN}"))
        self.assertEqual(made["Labels"], {"k3dreg.role": "linking", "k3dreg.owner": "owner"})
        self.assertTrue(host["AutoRemove"] and host["ReadonlyRootfs"])
        self.assertEqual((host["CapDrop"], set(host["CapAdd"])), (["ALL"], set(linkers.CAPABILITIES)))
        self.assertEqual(host["SecurityOpt"], ["no-new-privileges", "label=disable", "apparmor=unconfined"])
        self.assertNotIn("Privileged", host)
        self.assertEqual((host["PidMode"], host["UsernsMode"]), ("host", "host"))
        self.assertTrue(all(mount["BindOptions"]["NonRecursive"] for mount in host["Mounts"]))

    async def mounts(self, **changes: Any) -> list[tuple[str, str, bool]]:
        await self.get(evolve(self.info, **changes))
        found = self.started[-1]["HostConfig"]["Mounts"]
        return [(mount["Source"], mount["Target"], mount["ReadOnly"]) for mount in found]

    async def test_what_is_mounted_has_layers_and_volumes_on_one_mount(self) -> None:
        docker, run = ("/var/lib/docker", "/engine/var/lib/docker", False), "/run/docker/containerd"
        own, system = (run, f"/engine{run}", True), ("/run/containerd", "/engine/run/containerd", True)
        both = ("/var/lib", "/engine/var/lib", False)
        classic: dict[str, Any] = {"store": ImageStore.CLASSIC, "driver": "overlay2"}
        self.assertEqual(await self.mounts(**classic), [docker])
        self.assertEqual(await self.mounts(containerd_address=f"{run}/containerd.sock"), [docker, own])
        self.assertEqual(await self.mounts(containerd_address="/run/containerd/containerd.sock"), [both, system])
        self.assertEqual(await self.mounts(), [docker, own])
        self.engine.directories.remove(run)
        self.assertEqual(await self.mounts(id="another"), [both, system])
        # Each engine has a helper of its own.
        self.assertEqual(len(self.engine.containers), 2)

    async def test_directories_without_a_common_one(self) -> None:
        info = evolve(self.info, root_dir="/data/docker", containerd_address="/run/containerd/containerd.sock")
        self.assertIn("below no common directory", await self.fails(info))

    async def test_what_a_killed_k3dreg_left_is_removed(self) -> None:
        left = {"State": "running", "Labels": {"k3dreg.role": "linking", "k3dreg.owner": "owner"}}
        self.engine.containers["left"] = left
        await self.linkers.remove_left()
        self.assertEqual(list(self.engine.containers), [OWN])
        self.engine.containers["left"] = left
        await self.get()
        self.assertNotIn("left", self.engine.containers)

    async def test_one_that_has_ended_is_started_again_but_not_at_once(self) -> None:
        linker = await self.get()
        await deferToThread(linker.close)  # type: ignore[attr-defined]
        self.assertEqual(await self.fails(), "the helper container has ended; k3dreg tries again in 5 s")
        self.time.now += 4
        self.assertIn("again in 1 s", await self.fails())
        self.time.now += 2
        again = await self.get()
        self.assertIsNot(again, linker)
        self.time.now += 11  # it lives for longer than the pause, which is the first one again
        await self.get()
        await deferToThread(again.close)  # type: ignore[attr-defined]
        await self.get()
        self.assertEqual(len(self.started), 3)

    async def test_docker_is_asked_ever_more_rarely_for_what_it_refuses(self) -> None:
        self.engine.refuses = 403
        starts = []
        for _ in range(100):
            before = self.engine.count("POST")
            self.assertIn("no helper container runs: authorization denied", await self.fails())
            if self.engine.count("POST") > before:
                starts.append(self.time.now - 1000)
            self.time.now += 1
        self.assertEqual(starts, [0, 5, 15, 35, 75])
        await self.linkers.close()
        self.engine.refuses = 0
        await self.get()

    async def test_an_engine_that_is_away_is_asked_again_at_once(self) -> None:
        self.engine.down = True
        self.assertIn("the engine is down", await self.fails())
        self.engine.down = False
        await self.get()

    async def test_a_program_that_ends_is_not_waited_for(self) -> None:
        self.engine.run, self.engine.runs_on = lambda made: None, False
        self.assertIn("the helper container passed nothing", await self.fails())

    async def test_an_engine_that_does_not_know_k3dregs_container_is_another_one(self) -> None:
        self.linkers = self.make("c" * 64)
        self.assertIn("is on another machine", await self.fails())

    async def test_an_engine_whose_layers_are_of_another_kind_starts_nothing(self) -> None:
        self.assertIn("rootless", await self.fails(evolve(self.info, security_options=("name=rootless",))))
        self.assertEqual(self.engine.asked, [])

    async def test_an_ordinary_users_daemon_needs_the_image_in_docker(self) -> None:
        self.linkers = self.make("")
        with mock.patch.dict(self.engine.images, clear=True):
            reason = await self.fails()
        self.assertIn("not run as root, and no helper container runs: Docker has no image k3dreg:latest", reason)
        self.time.now += 10
        await self.get()
        made = self.started[0]
        self.assertEqual((made["Image"], made["HostConfig"]["NetworkMode"]), ("k3dreg:latest", "host"))
        self.assertEqual(made["Entrypoint"], ["/opt/k3dreg/bin/python"])

    async def test_an_ordinary_users_daemon_of_another_machines_docker(self) -> None:
        self.linkers = self.make("", "")
        self.assertIn("its address is no UNIX socket", await self.fails())
        self.assertEqual(self.engine.count("POST"), 0)

    async def test_a_close_waits_for_a_start_and_a_caller_that_leaves_does_not_end_it(self) -> None:
        asking = Deferred.fromCoroutine(self.get())
        self.assertNoResult(asking)
        asking.addErrback(lambda failure: None)
        asking.cancel()
        await self.linkers.close()
        self.assertEqual((len(self.started), list(self.engine.containers)), (1, [OWN]))

    def assertNoResult(self, deferred: Deferred[Any]) -> None:
        self.assertFalse(deferred.called)


class ChoiceTests(TestCase):
    async def chosen(self, own: OwnContainer | None, user: int) -> object:
        with (
            mock.patch.object(linkers, "find_own_container", lambda: own),
            mock.patch("os.geteuid", return_value=user),
        ):
            return await make_linkers(FakeArchiveApi({}), "/run/docker.sock", InlineWorkers(), reactor)

    async def test_only_root_outside_containers_links_by_itself(self) -> None:
        self.assertIsInstance(await self.chosen(None, 0), LinkersHere)
        self.assertIsInstance(await self.chosen(None, 1000), HelperLinkers)
        self.assertIsInstance(await self.chosen(OwnContainer(OWN, True), 0), HelperLinkers)

    async def test_the_linker_of_this_process_stays(self) -> None:
        linker = FakeLinker()
        here = LinkersHere(linker)
        with heard() as lines:
            self.assertIs(await here.get(INFO), linker)
            await here.close()
            await here.remove_left()
            await deferLater(reactor, 0)
        self.assertEqual(lines, [])
