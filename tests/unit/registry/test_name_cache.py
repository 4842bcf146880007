from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import ChildManifest, EngineImage, ImageStore
from k3dreg.engine_files.engine_files import NamesVersion
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineUnavailable, ImageNotInEngine
from k3dreg.registry.name_cache import RememberedImages

NOW = 1_000_000.0
OLD = NamesVersion((1, 1), NOW - 60)
IMAGE = EngineImage(Digest.of(b"image"), ImageStore.CONTAINERD)
OTHER = EngineImage(Digest.of(b"another"), ImageStore.CONTAINERD)


class _World:
    """An engine and its disk."""

    def __init__(self) -> None:
        self.images: dict[str, EngineImage] = {"app": IMAGE}
        self.state: NamesVersion | None = OLD
        self.asked: list[str] = []
        self.held: list[Deferred[None]] = []
        self.holds = False

    async def current(self, name: str) -> EngineImage:
        self.asked.append(name)
        image = self.images.get(name)
        self.held.append(Deferred() if self.holds else succeed(None))
        await self.held[-1]
        if image is None:
            raise ImageNotInEngine(f"no {name}")
        return image

    async def version(self) -> NamesVersion | None:
        return self.state


class RememberedImagesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = _World()
        self.now = NOW
        self.images = RememberedImages(self.world, self.world, lambda: self.now)

    def begin(self, name: str = "app") -> Deferred[EngineImage]:
        return Deferred.fromCoroutine(self.images.current(name))

    def current(self, name: str = "app") -> EngineImage:
        return self.successResultOf(self.begin(name))

    def fails(self, name: str, kind: type[Exception] = ImageNotInEngine) -> None:
        self.failureResultOf(self.begin(name), kind)

    def test_while_nothing_changes_the_engine_is_asked_once_for_each_name(self) -> None:
        self.world.images["other"] = OTHER
        for _ in range(3):
            self.assertEqual((self.current(), self.current("other")), (IMAGE, OTHER))
            self.fails("none")
        self.assertEqual(self.world.asked, ["app", "other", "none"])

    def test_after_any_change_it_is_asked_for_all_of_them(self) -> None:
        self.world.images["other"] = OTHER
        self.current(), self.current("other")
        self.fails("none")
        self.world.images = {"app": OTHER, "none": IMAGE}
        self.world.state = NamesVersion((1, 2), NOW - 3)
        self.assertEqual((self.current(), self.current("none")), (OTHER, IMAGE))
        self.fails("other")

    def test_what_changed_a_moment_ago_may_be_changing_still(self) -> None:
        self.world.state = NamesVersion((1, 2), NOW - 2)
        self.current()
        # Within the same step of the file system's clock.
        self.world.images["app"] = OTHER
        self.assertEqual(self.current(), OTHER)
        self.fails("none")
        self.world.images["none"] = IMAGE
        self.assertEqual(self.current("none"), IMAGE)
        self.now += 1
        self.current(), self.current()
        self.assertEqual(self.world.asked, ["app", "app", "none", "none", "app"])

    def test_a_file_system_that_tells_parts_of_a_second_is_believed_sooner(self) -> None:
        self.world.state = NamesVersion((1, 2), NOW - 0.75)
        self.current(), self.current()
        self.assertEqual(len(self.world.asked), 2)
        self.world.state = NamesVersion((1, 3), NOW - 1.25)
        self.current(), self.current()
        self.assertEqual(len(self.world.asked), 3)

    def test_a_clock_that_went_back_remembers_nothing(self) -> None:
        self.world.state = NamesVersion((1, 2), NOW + 100)
        self.current(), self.current()
        self.assertEqual(len(self.world.asked), 2)

    def test_where_nobody_can_tell_it_is_always_asked(self) -> None:
        self.current()
        self.world.state = None
        self.current(), self.current()
        self.assertEqual(len(self.world.asked), 3)

    def test_an_answer_to_a_question_of_before_a_change_is_not_remembered(self) -> None:
        self.world.holds = True
        first = self.begin()
        self.world.holds = False
        self.world.images["app"] = OTHER
        self.world.state = NamesVersion((1, 2), NOW - 3)
        self.assertEqual(self.current(), OTHER)
        self.world.held[0].callback(None)
        self.assertEqual(self.successResultOf(first), IMAGE)  # as it was when it was asked
        self.assertEqual(self.current(), OTHER)
        self.assertEqual(len(self.world.asked), 2)

    def test_an_image_that_lacks_blobs_may_be_mended_on_the_disk(self) -> None:
        lost = ChildManifest(Descriptor("m", Digest.of(b"child"), 5), False, "image", held=3)
        self.world.images["app"] = evolve(IMAGE, children=(lost,))
        self.current()
        self.world.images["app"] = IMAGE
        self.assertEqual(self.current(), IMAGE)

    def test_another_platform_that_was_never_there_is_no_damage(self) -> None:
        other = ChildManifest(Descriptor("m", Digest.of(b"child"), 5), False, "image")
        self.world.images["app"] = evolve(IMAGE, children=(other,))
        self.current(), self.current()
        self.assertEqual(len(self.world.asked), 1)

    def test_a_failure_is_nothing_to_remember(self) -> None:
        self.world.holds = True
        asking = self.begin()
        self.world.held[0].errback(EngineUnavailable("down"))
        self.failureResultOf(asking, EngineUnavailable)
        self.world.holds = False
        self.assertEqual(self.current(), IMAGE)

    def test_however_many_names_are_asked_for_memory_is_bounded(self) -> None:
        for number in range(3000):
            self.fails(f"none{number}")
        self.assertLessEqual(len(self.images._known), 1000)
