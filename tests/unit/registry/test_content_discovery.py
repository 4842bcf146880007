"""Lists: pages of names, what was pushed, and beside it what Docker has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BadRequest, EngineUnavailable, NameUnknown
from k3dreg.oci.listing import LARGEST_PAGE, Names, in_order, page_limit
from k3dreg.oci.manifest import LARGEST_MANIFEST
from k3dreg.oci.reference import Repository, Tag
from k3dreg.oci.routes import Query, ReferrersRoute
from k3dreg.registry.content_discovery import Discovery, EngineLists
from k3dreg.registry.own_name_discovery import _name
from k3dreg.store.interfaces import PushedManifest
from k3dreg.web.answers import Answer
from k3dreg.web.discovery_api import DiscoveryHandlers
from k3dreg.web.exchange import Exchange
from k3dreg.web.site import make_site
from tests.fakes.pushing import APP, CONFIG, UploadsCase, described, image
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import WireTestCase
from tests.fakes.workers import InlineWorkers, ManualWorkers

NAMES = st.lists(st.text("aAbB1._-", min_size=1, max_size=4), max_size=30)


@given(NAMES, st.integers(1, 5))
def test_parts_one_after_the_other_are_the_whole_list(names: list[str], size: int) -> None:
    listed, found, last = Names(names), list[str](), None
    while part := listed.after(last, size):
        assert len(part) <= size
        found += part
        last = part[-1]
    assert found == in_order(names)


@given(NAMES, st.text("aAbB1._-", min_size=1, max_size=4))
def test_after_last_comes_what_is_after_it_in_order_be_it_there_or_not(names: list[str], last: str) -> None:
    whole = in_order(names)
    assert Names(names).after(last, 100) == [n for n in whole if (n.lower(), n) > (last.lower(), last)]


def test_the_order_is_that_of_the_alphabet_not_of_the_case() -> None:
    assert in_order(["b", "B", "a", "C", "1", "a"]) == ["1", "a", "B", "b", "C"]


@pytest.mark.parametrize(
    ("n", "limit"), [(None, LARGEST_PAGE), ("0", 0), ("3", 3), ("99999", LARGEST_PAGE), ("9" * 5000, LARGEST_PAGE)]
)
def test_how_many_are_asked_for(n: str | None, limit: int) -> None:
    assert page_limit(n) == limit


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "٣", "+1", " 1"])
def test_what_is_no_number_is_refused(n: str) -> None:
    with pytest.raises(BadRequest):
        page_limit(n)


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


class FakeNames:
    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.down = False
        self.asked = 0

    async def names(self) -> Sequence[tuple[Repository, Tag]]:
        self.asked += 1
        if self.down:
            raise EngineUnavailable("Docker is down")
        return [name for text in self.texts if (name := _name(text)) is not None]


class DiscoveryTests(UploadsCase):
    def setUp(self) -> None:
        super().setUp()
        self.docker = FakeNames(
            "app:built", "localhost:5005/app:tagged", "ghcr.io/app:x", "nginx:1", "team/app:y", "other:5000/app:z"
        )
        self.clock = Clock()
        lists = EngineLists(self.docker, InlineWorkers(), self.clock)
        self.discovery = Discovery(self.pushed, self.names, lists)
        self.push_blob(CONFIG)

    def tags(self, repository: Repository, last: str | None = None, limit: int = 10) -> Sequence[str]:
        return cast(Sequence[str], self.result(self.discovery.tags(repository, last, limit)))

    def repositories(self, last: str | None = None) -> Sequence[str]:
        return cast(Sequence[str], self.result(self.discovery.repositories(last, 10)))

    def test_what_was_pushed_and_what_docker_has_under_the_same_names(self) -> None:
        self.push(image(), "pushed", "built")
        for repository in (APP, Repository("localhost:5005", "app")):
            self.assertEqual(self.tags(repository), ["built", "pushed", "tagged"])
        self.assertEqual(self.tags(Repository("ghcr.io", "app")), ["x"])
        self.assertEqual(self.tags(Repository.parse("library/nginx", "docker.io")), ["1"])
        self.assertEqual(self.tags(Repository.parse("team/app", "docker.io")), ["y"])
        self.assertEqual(self.repositories(), ["app", "nginx", "team/app"])

    def test_pages_of_what_was_pushed_and_of_what_docker_has_together(self) -> None:
        self.push(image(), "pushed", "built", "x")
        self.assertEqual(self.tags(APP, None, 2), ["built", "pushed"])
        self.assertEqual(self.tags(APP, "pushed", 1), ["tagged"])
        self.assertEqual(self.tags(APP, "tagged"), ["x"])
        self.assertEqual(self.repositories("app"), ["nginx", "team/app"])

    def test_what_nobody_has_is_unknown(self) -> None:
        for repository in (Repository(None, "nothing"), Repository("ghcr.io", "nginx")):
            self.failed(self.discovery.tags(repository, None, 1), NameUnknown)

    def test_without_docker_what_was_pushed_is_listed(self) -> None:
        self.push(image(), "pushed")
        self.docker.down = True
        self.assertEqual(self.tags(APP), ["pushed"])
        self.assertEqual(self.repositories(), ["app"])

    def test_a_repository_without_tags_has_none(self) -> None:
        self.push(image())
        self.docker.texts = ()
        self.assertEqual(self.tags(APP), [])

    def test_requests_at_the_same_time_share_a_list_that_is_no_older_than_they_are(self) -> None:
        workers = ManualWorkers()
        discovery = Discovery(self.pushed, self.names, EngineLists(self.docker, workers, self.clock))
        first = Deferred.fromCoroutine(discovery.repositories(None, 10))
        self.docker.texts = ("new:1",)
        later = [Deferred.fromCoroutine(discovery.repositories(None, 10)) for _ in range(10)]
        self.assertEqual((self.docker.asked, len(workers.waiting)), (1, 1))
        workers.work()
        workers.work()
        self.assertEqual((self.docker.asked, workers.waiting), (2, []))
        self.assertIn("nginx", self.successResultOf(first))
        for each in later:
            self.assertEqual(self.successResultOf(each), ["app", "new"])

    def test_the_next_page_is_one_of_the_same_list_for_a_while(self) -> None:
        self.assertIn("nginx", self.repositories())
        self.docker.texts = ("new:1",)
        self.clock.advance(9)
        self.assertIn("nginx", self.repositories("a"))
        self.assertEqual(self.docker.asked, 1)
        self.assertIn("new", self.repositories())
        self.docker.texts = ("newer:1",)
        self.clock.advance(11)
        self.assertIn("newer", self.repositories("a"))

    def test_names_that_differ_in_case_are_two(self) -> None:
        for tag in ("b", "B", "a"):
            self.push(image(), tag)
        self.docker.texts = ()
        self.assertEqual(self.tags(APP), ["a", "B", "b"])


class ManyReferrersTests(UploadsCase):
    def test_pages_link_to_each_other(self) -> None:
        subject = Digest.of(b"subject")
        large = {"a": "x" * 1_500_000}
        for number in range(5):
            descriptor = Descriptor(
                media_types.OCI_MANIFEST, Digest.of(b"%d" % number), 5, artifact_type="a/b", annotations=large
            )
            self.result(self.pushed.add_manifest(APP, PushedManifest(descriptor, subject=subject), []))
        table = DiscoveryHandlers(Discovery(self.pushed, self.names)).table[ReferrersRoute]
        query, found, sizes = "artifactType=a/b", list[str](), list[int]()
        while query:
            exchange = cast(Exchange, SimpleNamespace(query=Query.parse(query)))
            answer: Answer = self.result(table["GET"](ReferrersRoute(APP, subject), exchange))
            assert len(answer.body) <= LARGEST_MANIFEST
            digests = [each["digest"] for each in json.loads(answer.body)["manifests"]]
            found += digests
            sizes.append(len(digests))
            query = urlsplit(dict(answer.headers).get("Link", "").partition(">")[0].lstrip("<")).query
        self.assertEqual(sizes, [2, 2, 1])
        self.assertEqual(found, sorted(str(Digest.of(b"%d" % number)) for number in range(5)))


class ListsOnTheWireTests(WireTestCase):
    """The answers, with a list made by the use case's own tests' means."""

    def setUp(self) -> None:
        super().setUp()
        self.case = UploadsCase()
        self.case.setUp()
        self.addCleanup(self.case.doCleanups)
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
