"""Images that are left in the engine when it, or a k3dreg, was killed."""

from __future__ import annotations

import time

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files.helper_objects import clean_up, image_of_nothing
from tests.fakes.archive_api import FakeArchiveApi

OWN, OTHER = "0123456789abcdef", "fedcba9876543210"


class LeftImagesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = FakeArchiveApi({})
        self.clock = Clock()

    def add(self, repository: str, owner: str, *, age: float = 1, tag: str = "", labelled: bool = True) -> str:
        name = f"{repository}:{tag or f'{owner[:8]}-{len(self.engine.images):032x}'}"
        self.engine.images[name] = f"sha256:{len(self.engine.images) + 1:064x}"
        labels = {"k3dreg.role": "probe", "k3dreg.owner": owner} if labelled else None
        self.engine.told[name] = {"Labels": labels, "Created": int(time.time() - age)}
        return name

    def start(self) -> Deferred[None]:
        return Deferred.fromCoroutine(clean_up(self.engine, OWN, self.clock))

    def test_a_start_removes_those_that_an_earlier_run_made_for_whatever_purpose(self) -> None:
        for repository in ("k3dreg-probe", "k3dreg-reader", "k3dreg-hands-over"):
            self.add(repository, OWN)
        self.successResultOf(self.start())
        self.assertEqual(self.engine.images, {})

    def test_they_are_removed_by_their_id_since_one_that_a_container_has_would_only_lose_its_name(self) -> None:
        identity = self.engine.images[self.add("k3dreg-reader", OWN)]
        self.successResultOf(self.start())
        self.assertEqual(self.engine.count(f"DELETE /images/{identity}"), 1)

    def test_those_of_another_k3dreg_are_removed_when_they_cannot_be_in_use(self) -> None:
        self.add("k3dreg-probe", OTHER, age=7200)
        recent = self.add("k3dreg-probe", OTHER, age=60)
        self.successResultOf(self.start())
        self.assertEqual(list(self.engine.images), [recent])

    def test_those_that_have_lost_their_name_are_removed_when_they_cannot_be_in_use(self) -> None:
        old, new = (self.add("k3dreg-probe", OWN, age=age) for age in (7200, 60))
        for name in (old, new):
            self.engine.told[name]["RepoTags"] = ["<none>:<none>"]
        self.successResultOf(self.start())
        self.assertEqual(list(self.engine.images), [new])

    def test_whatever_is_not_sure_to_be_k3dregs_stays(self) -> None:
        self.add("k3dreg-probe", OWN, age=7200, labelled=False)
        self.add("k3dreg-app", OWN, age=7200, tag="latest")
        self.add("my-k3dreg-probe", OWN, age=7200)
        before = dict(self.engine.images)
        self.successResultOf(self.start())
        self.assertEqual(self.engine.images, before)

    def test_one_that_is_in_use_stays_until_its_end(self) -> None:
        used = Deferred[None]()

        async def use() -> None:
            async with image_of_nothing(self.engine, "k3dreg-reader", "reader", OWN):
                await used

        using = Deferred.fromCoroutine(use())
        self.successResultOf(self.start())
        self.assertEqual(len(self.engine.images), 1)
        used.callback(None)
        self.successResultOf(using)
        self.assertEqual(self.engine.images, {})

    def test_an_engine_that_is_not_there_yet_is_waited_for(self) -> None:
        self.add("k3dreg-probe", OWN)
        self.engine.down = True
        cleaning = self.start()
        self.clock.advance(2)
        self.assertNoResult(cleaning)
        self.engine.down = False
        self.clock.advance(2)
        self.successResultOf(cleaning)
        self.assertEqual(self.engine.images, {})

    def test_a_stop_ends_the_waiting(self) -> None:
        self.engine.down = True
        cleaning = self.start()
        cleaning.cancel()
        self.failureResultOf(cleaning, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
