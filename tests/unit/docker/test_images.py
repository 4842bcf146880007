"""Images of an engine, and its list of them, which it fails to make while images are removed."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker import images
from k3dreg.docker.images import ListedImage
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.oci.platform import Platform
from k3dreg.streaming.body_producer import Pieces
from tests.fakes.documents import Requests

T = TypeVar("T")

# As Docker 28.5 said it.
GONE = EngineError("failed to retrieve image list: NotFound: content digest sha256:65…94: not found", status=404)
ID = "sha256:" + "a" * 64


class ImageCase(SynchronousTestCase):
    def engine(self, *answers: object) -> Requests:
        self.requests = Requests(*answers)
        return self.requests

    def done(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def refused(self, coroutine: Coroutine[Any, Any, object], error: type[EngineError] = EngineError) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(coroutine), error).value)


class ListTests(ImageCase):
    def test_a_list_that_fails_for_an_image_that_was_just_removed_is_asked_for_again(self) -> None:
        self.assertEqual(self.done(images.listed(self.engine(GONE, GONE, [{"Id": "x"}]))), [ListedImage("x")])
        self.assertEqual(self.requests.asked, [("GET /images/json", {})] * 3)

    def test_but_not_for_ever(self) -> None:
        self.refused(images.listed(self.engine(GONE)))
        self.assertEqual(len(self.requests.asked), 5)

    def test_another_error_is_told_at_once(self) -> None:
        for error in (EngineError("out of memory", status=500), EngineUnavailable("the socket was not found")):
            self.refused(images.listed(self.engine(error)), type(error))
            self.assertEqual(len(self.requests.asked), 1)

    def test_a_list_that_is_none_is_empty(self) -> None:
        odds: list[object] = [None, {}, [5, None]]
        for odd in odds:
            self.assertEqual(self.done(images.listed(self.engine(odd))), [])

    def test_an_image_is_what_the_engine_tells_of_it(self) -> None:
        told = {"Id": ID, "RepoTags": ["a:1", "<none>:<none>"], "Labels": {"l": "x"}, "Created": 7, "Size": 9}
        odd = {"Id": None, "RepoTags": None, "Labels": None, "Created": "", "Size": None}
        found = self.done(images.listed(self.engine([told, odd])))
        self.assertEqual(found, [ListedImage(ID, ("a:1",), {"l": "x"}, 7, 9), ListedImage()])

    def test_those_of_a_name_or_with_a_label_are_asked_for_by_a_filter(self) -> None:
        self.done(images.listed(self.engine([]), reference="k3dreg-*"))
        self.assertEqual(self.requests.asked, [("GET /images/json", {"filters": '{"reference": ["k3dreg-*"]}'})])
        self.done(images.listed(self.engine([]), label="k3dreg.role"))
        self.assertEqual(self.requests.asked, [("GET /images/json", {"filters": '{"label": ["k3dreg.role"]}'})])


class ChangeTests(ImageCase):
    def test_an_image_that_is_gone_is_removed(self) -> None:
        self.done(images.remove(self.engine([{"Untagged": "a:1"}]), "h:5000/a:1"))
        self.assertEqual(self.requests.asked, [("DELETE /images/h:5000/a:1", {})])
        self.done(images.remove(self.engine(EngineError("No such image", status=404)), ID, force=True))
        self.assertEqual(self.requests.asked, [(f"DELETE /images/{ID}", {"force": "1"})])

    def test_an_image_that_is_in_use_is_not_removed(self) -> None:
        self.assertIn("in use", self.refused(images.remove(self.engine(EngineError("in use", status=409)), ID)))

    def test_an_image_of_which_a_container_runs_stays(self) -> None:
        self.done(images.remove_unless_running(self.engine(EngineError("is using its image", status=409)), ID))
        self.assertEqual(self.requests.asked, [(f"DELETE /images/{ID}", {"force": "1"})])
        error = EngineError("out of memory", status=500)
        self.refused(images.remove_unless_running(self.engine(error), ID))

    def test_an_empty_image_is_imported_with_labels(self) -> None:
        imported = images.import_empty(self.engine({"status": ID}), "k3dreg-x:1", {"k3dreg.role": "x", "o": "1"})
        self.assertEqual(self.done(imported), ID)
        params = {"fromSrc": "-", "repo": "k3dreg-x", "tag": "1", "changes": "LABEL k3dreg.role=x o=1"}
        self.assertEqual(self.requests.asked, [("POST /images/create", params)])

    def test_an_import_fails_inside_an_answer_without_an_error(self) -> None:
        answer = {"errorDetail": {"message": "no space left"}, "error": "no space left"}
        self.assertIn("no space left", self.refused(images.import_empty(self.engine(answer), "a:1", {})))

    def test_a_build_tells_the_image_that_it_made(self) -> None:
        answer = b'{"id": "moby.buildkit.trace", "aux": "AA"}{"id": "moby.image.id", "aux": {"ID": "%s"}}' % ID.encode()
        built = images.build(self.engine(answer), b"FROM a", Platform("linux", "arm64"))
        self.assertEqual(self.done(built), ID)
        self.assertEqual(self.requests.asked, [("POST /build", {"version": "2", "platform": "linux/arm64"})])
        self.assertEqual(self.requests.data, [b"FROM a"])
        self.assertEqual(self.done(images.build(self.engine(b""), b"FROM a", None)), "")

    def test_a_build_fails_with_buildkits_words(self) -> None:
        answer = {"errorDetail": {"message": "no active sessions"}, "error": "no active sessions"}
        self.assertEqual(self.refused(images.build(self.engine(answer), b"FROM a", None)), "no active sessions")

    def test_a_load_of_content_that_cannot_be_unpacked_is_one(self) -> None:
        def load(said: str) -> Coroutine[Any, Any, None]:
            return images.load(self.engine({"errorDetail": {"message": said}}), Pieces([b"tar"]))

        self.done(load("failed to unpack loaded image: mismatched image rootfs"))
        self.assertEqual(self.refused(load("no space left")), "no space left")
