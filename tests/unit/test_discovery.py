"""Lists: pages of names, what was pushed, and beside it what Docker has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from k3dreg.discovery import Discovery
from k3dreg.interfaces import IImageNames
from k3dreg.learning import _name
from k3dreg.model import media_types
from k3dreg.model.digest import Digest
from k3dreg.model.errors import BadRequest, EngineUnavailable, NameUnknown
from k3dreg.model.reference import Repository, Tag
from k3dreg.protocol.listing import LARGEST_PAGE, in_order, page_of
from k3dreg.web.site import make_site
from tests.fakes.pushing import APP, CONFIG, UploadsCase, described, image
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import WireTestCase

NAMES = st.lists(st.text("aAbB1._-", min_size=1, max_size=4), max_size=30)


@given(NAMES, st.integers(1, 5))
def test_pages_one_after_the_other_are_the_whole_list(names: list[str], size: int) -> None:
    whole, found, last, more = in_order(names), list[str](), None, True
    while more:
        page = page_of(whole, str(size), last)
        assert len(page.names) <= size
        found += page.names
        more = page.more
        last = page.names[-1] if page.names else None
    assert found == whole


@given(NAMES, st.text("aAbB1._-", min_size=1, max_size=4))
def test_after_last_comes_what_is_after_it_in_order_be_it_there_or_not(names: list[str], last: str) -> None:
    whole = in_order(names)
    assert page_of(whole, None, last).names == [n for n in whole if (n.lower(), n) > (last.lower(), last)]


def test_the_order_is_that_of_the_alphabet_not_of_the_case() -> None:
    assert in_order(["b", "B", "a", "C", "1", "a"]) == ["1", "a", "B", "b", "C"]


@pytest.mark.parametrize(("n", "limit"), [("0", 0), ("3", 3), ("99999", LARGEST_PAGE), ("9" * 5000, LARGEST_PAGE)])
def test_how_many_are_asked_for(n: str, limit: int) -> None:
    page = page_of(["a", "b"], n, None)
    assert (page.limit, page.names, page.more) == (limit, ["a", "b"][:limit], False)


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "٣", "+1", " 1"])
def test_what_is_no_number_is_refused(n: str) -> None:
    with pytest.raises(BadRequest):
        page_of(["a"], n, None)


@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("nginx:1.27", Repository(None, "nginx"), "1.27"),
        ("team/app:t", Repository(None, "team/app"), "t"),
        ("localhost:5005/app:t", Repository("localhost:5005", "app"), "t"),
        ("localhost/app:t", Repository("localhost", "app"), "t"),
        ("ghcr.io/team/app:t", Repository("ghcr.io", "team/app"), "t"),
        ("docker.io/library/x:t", Repository("docker.io", "library/x"), "t"),
    ],
)
def test_names_as_docker_lists_them(text: str, repository: Repository, tag: str) -> None:
    assert _name(text) == (repository, Tag(tag))


@pytest.mark.parametrize("text", ["<none>:<none>", "", "app", "UPPER:t", 5])
def test_what_docker_lists_and_nobody_can_ask_for_is_left_out(text: object) -> None:
    assert _name(text) is None


@implementer(IImageNames)
class FakeNames:
    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.down = False

    async def names(self) -> Sequence[tuple[Repository, Tag]]:
        if self.down:
            raise EngineUnavailable("Docker is down")
        return [name for text in self.texts if (name := _name(text)) is not None]


class DiscoveryTests(UploadsCase):
    def setUp(self) -> None:
        super().setUp()
        self.docker = FakeNames(
            "app:built", "localhost:5005/app:tagged", "ghcr.io/app:x", "nginx:1", "team/app:y", "other:5000/app:z"
        )
        self.discovery = Discovery(self.pushed, self.names, self.docker)
        self.push_blob(CONFIG)

    def tags(self, repository: Repository) -> Sequence[str]:
        return list(self.result(self.discovery.tags(repository)))

    def test_what_was_pushed_and_what_docker_has_under_the_same_names(self) -> None:
        self.push(image(), "pushed", "built")
        for repository in (APP, Repository("localhost:5005", "app")):
            self.assertEqual(self.tags(repository), ["built", "pushed", "tagged"])
        self.assertEqual(self.tags(Repository("ghcr.io", "app")), ["x"])
        self.assertEqual(self.tags(Repository.parse("library/nginx", "docker.io")), ["1"])
        self.assertEqual(self.tags(Repository.parse("team/app", "docker.io")), ["y"])
        self.assertEqual(list(self.result(self.discovery.repositories())), ["app", "nginx", "team/app"])

    def test_what_nobody_has_is_unknown(self) -> None:
        for repository in (Repository(None, "nothing"), Repository("ghcr.io", "nginx")):
            self.failed(self.discovery.tags(repository), NameUnknown)

    def test_without_docker_what_was_pushed_is_listed(self) -> None:
        self.push(image(), "pushed")
        self.docker.down = True
        self.assertEqual(self.tags(APP), ["pushed"])
        self.assertEqual(list(self.result(self.discovery.repositories())), ["app"])

    def test_a_repository_without_tags_has_none(self) -> None:
        self.push(image())
        self.docker.texts = ()
        self.assertEqual(self.tags(APP), [])


class ListsOnTheWireTests(WireTestCase):
    """The answers, with a list made by the use case's own tests' means."""

    def setUp(self) -> None:
        super().setUp()
        self.case = UploadsCase()
        self.case.setUp()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.case.pushed.close()))
        self.discovery = Discovery(self.case.pushed, self.case.names)
        self.port = self.listen(make_site(FakeRegistry(), Clock(), discovery=self.discovery))
        self.case.push_blob(CONFIG)
        self.subject = described(media_types.OCI_MANIFEST, b"a subject")
        self.plain = self.case.push(image(subject=self.subject), "c", "a", "B")
        self.typed = self.case.push(image(subject=self.subject, artifactType="app/x y"), "d")

    async def got(self, path: str, status: int = 200) -> tuple[dict[str, str], Any]:
        wire = await self.connect(self.port)
        answer = await wire.ask("GET", path)
        head = await wire.ask("HEAD", path)
        self.assertEqual((answer.status, head.status, head.headers), (status, status, answer.headers))
        return answer.headers, json.loads(answer.body)

    async def test_tags_are_listed_in_pages_that_link_to_each_other(self) -> None:
        headers, document = await self.got("/v2/app/tags/list")
        self.assertEqual(document, {"name": "app", "tags": ["a", "B", "c", "d"]})
        self.assertNotIn("link", headers)
        path, found = "/v2/app/tags/list?n=3", []
        for _ in range(2):
            headers, document = await self.got(path)
            found.append(document["tags"])
            path = headers.get("link", "").partition(">")[0].lstrip("<")
        self.assertEqual((found, path), ([["a", "B", "c"], ["d"]], ""))

    async def test_a_link_says_the_registry_that_was_asked_for(self) -> None:
        headers, _ = await self.got("/v2/app/tags/list?n=1&ns=localhost:5005")
        target, _, relation = headers["link"].partition("; ")
        self.assertEqual(
            parse_qs(urlsplit(target.strip("<>")).query), {"ns": ["localhost:5005"], "n": ["1"], "last": ["a"]}
        )
        self.assertEqual(relation, 'rel="next"')

    async def test_no_tags_are_asked_for(self) -> None:
        headers, document = await self.got("/v2/app/tags/list?n=0")
        self.assertEqual((document["tags"], "link" in headers), ([], False))

    async def test_the_catalog(self) -> None:
        _, document = await self.got("/v2/_catalog")
        self.assertEqual(document, {"repositories": ["app"]})

    async def test_what_is_wrong_is_said(self) -> None:
        _, document = await self.got("/v2/nothing/tags/list", 404)
        self.assertEqual(document["errors"][0]["code"], "NAME_UNKNOWN")
        await self.got("/v2/app/tags/list?n=x", 400)
        await self.got("/v2/app/referrers/sha256:x", 400)

    async def test_referrers_are_an_index_that_can_be_filtered(self) -> None:
        path = f"/v2/app/referrers/{self.subject['digest']}"
        headers, document = await self.got(path)
        self.assertEqual(headers["content-type"], media_types.OCI_INDEX)
        self.assertEqual((document["schemaVersion"], document["mediaType"]), (2, media_types.OCI_INDEX))
        self.assertEqual({m["digest"] for m in document["manifests"]}, {str(self.plain), str(self.typed)})
        self.assertNotIn("oci-filters-applied", headers)
        headers, document = await self.got(path + "?artifactType=app/x%20y")
        self.assertEqual([m["digest"] for m in document["manifests"]], [str(self.typed)])
        self.assertEqual(headers["oci-filters-applied"], "artifactType")

    async def test_nothing_refers_to_it_is_an_answer_too(self) -> None:
        _, document = await self.got(f"/v2/nothing/referrers/{Digest.of(b'x')}")
        self.assertEqual(document["manifests"], [])
