"""Rules remove the tags that they do not keep, with what only these lead to, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python import usage

from k3dreg.config.retention import RetainRule, parse_rule
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreFull
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.reporting.trace import Trace
from k3dreg.store.collection import EVERY, GRACE, Collected
from k3dreg.store.interfaces import PushedUsage
from k3dreg.store.pushed_tables import PULL_RECORDED_EVERY
from k3dreg.store.retention import PULL_PROTECTS
from tests.fakes.databases import manifests_in, tags_in
from tests.fakes.logs import heard
from tests.fakes.pushing import APP, CONFIG, OTHER, UploadsCase, described, image, index
from tests.fakes.workers import ManualWorkers

DAY = 86400.0


def numbered(number: int, *layers: bytes) -> bytes:
    return image(*layers, annotations={"n": str(number)})


class RetentionCase(UploadsCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock.advance(1_000_000)
        self.push_blob(CONFIG)

    def push_builds(self, count: int, repository: Repository = APP, prefix: str = "tilt-") -> None:
        """Push tags of which each has a layer of its own, one a minute."""
        for number in range(count):
            layer = f"layer {repository} {prefix}{number}".encode()
            self.push_blob(layer, repository)
            self.push(numbered(number, layer), f"{prefix}{number}", repository=repository)
            self.clock.advance(60)

    def apply(self, *rules: str, grace: float = GRACE) -> Collected:
        self.collector.retain([parse_rule(rule) for rule in rules])
        collected: Collected = self.result(self.collector.collect(grace))
        return collected

    def tags(self, repository: Repository = APP) -> list[str]:
        return sorted(tags_in(self.database, repository))

    def pull(self, tag: str) -> None:
        self.result(self.registry.manifest(Reference(APP, Tag(tag)), None, Trace()))


class RuleTests(RetentionCase):
    def test_without_a_rule_everything_stays(self) -> None:
        self.push_builds(3)
        self.clock.advance(1000 * DAY)
        self.assertEqual(self.apply(), Collected())

    def test_the_newest_of_each_repository_stay_and_the_bytes_of_others_are_freed(self) -> None:
        self.push_builds(5)
        self.push_blob(CONFIG, OTHER)
        self.push_builds(3, OTHER)
        self.push_builds(2, APP, "v")
        self.clock.advance(GRACE)
        collected = self.apply("tilt-*=2")
        self.assertEqual(
            [str(tag) for tag in collected.tags], ["app:tilt-2", "app:tilt-1", "app:tilt-0", "other:tilt-0"]
        )
        self.assertEqual((collected.manifests, collected.blobs, collected.files), (4, 4, 8))
        self.assertEqual(self.tags(), ["tilt-3", "tilt-4", "v0", "v1"])
        self.assertEqual(self.tags(OTHER), ["tilt-1", "tilt-2"])
        self.assertEqual(self.read(Digest.of(b"layer app tilt-3")), b"layer app tilt-3")
        for gone in (b"layer app tilt-2", numbered(2, b"layer app tilt-2")):
            self.assertFalse(self.store.has(Digest.of(gone)))
        self.assertTrue(self.store.has(Digest.of(CONFIG)))
        self.assertEqual(self.apply("tilt-*=2"), Collected())

    def test_the_newest_is_the_one_that_was_pushed_last_whatever_its_name(self) -> None:
        self.push_builds(3)
        self.push(numbered(0, b"layer app tilt-0"), "tilt-0")
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-0"])

    def test_a_tag_expires_after_its_push_or_last_pull(self) -> None:
        self.push_builds(2, APP, "1-dev-")
        self.clock.advance(10 * DAY)
        self.pull("1-dev-0")
        self.clock.advance(4 * DAY)
        self.apply("*-dev-*=2w")
        self.assertEqual(self.tags(), ["1-dev-0"])
        self.clock.advance(10 * DAY - PULL_RECORDED_EVERY)
        self.apply("*-dev-*=2w")
        self.assertEqual(self.tags(), ["1-dev-0"])
        self.clock.advance(PULL_RECORDED_EVERY + 1)
        self.apply("*-dev-*=2w")
        self.assertEqual(self.tags(), [])

    def test_the_first_rule_that_fits_counts(self) -> None:
        self.push_builds(3)
        self.push_builds(3, APP, "v")
        self.apply("app:tilt-0=1", "tilt-*=1", "app=5", "*=1")
        self.assertEqual(self.tags(), ["tilt-0", "tilt-2", "v0", "v1", "v2"])

    def test_a_tag_of_the_same_manifest_keeps_it(self) -> None:
        self.push_builds(1)
        self.push(numbered(0, b"layer app tilt-0"), "v1")
        self.push_builds(1, APP, "tilt-new-")
        self.clock.advance(GRACE)
        collected = self.apply("tilt-*=1")
        self.assertEqual((len(collected.tags), collected.manifests), (1, 0))
        self.assertEqual(self.tags(), ["tilt-new-0", "v1"])
        self.pull("v1")

    def test_deleting_may_be_turned_off_for_clients(self) -> None:
        self.push_builds(2)
        self.uploads.allow_deleting(False)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-1"])

    def test_it_happens_every_hour_and_the_log_names_what_went(self) -> None:
        self.push_builds(15)
        self.collector.retain([parse_rule("tilt-*=3")])
        self.collector.start()
        with heard() as lines:
            self.clock.advance(EVERY)
        self.collector.stop()
        self.assertEqual(self.tags(), ["tilt-12", "tilt-13", "tilt-14"])
        [line] = [line for line in lines if "--retain tilt-*=3" in line]
        self.assertIn("12 of the tags of app: tilt-11, tilt-10, ", line)
        self.assertTrue(line.endswith("tilt-2, ..."))

    def test_what_rules_would_free_is_what_they_free(self) -> None:
        self.push_builds(5)
        self.push(numbered(9, b"layer app tilt-0"), "v1")
        self.push_blob(b"layer app tilt-1", OTHER)
        self.push_blob(CONFIG, OTHER)
        self.push(numbered(1, b"layer app tilt-1"), "tilt-1", repository=OTHER)
        self.clock.advance(GRACE)
        rules = [parse_rule("tilt-*=2")]
        before = self.result(self.pushed.usage(rules))
        self.assertEqual(self.result(self.pushed.usage([])), PushedUsage(before.bytes))
        collected = self.apply("tilt-*=2")
        # The layer of tilt-0 is v1's, too, and tilt-1 is in another repository.
        self.assertEqual(collected.files, 3)
        self.assertEqual((before.expired, before.freed), (3, collected.bytes))
        self.assertEqual(self.result(self.pushed.usage(rules)), PushedUsage(before.bytes - collected.bytes))


class ProtectionTests(RetentionCase):
    def test_what_was_pulled_within_a_day_stays_also_after_a_kill(self) -> None:
        self.push_builds(3)
        self.clock.advance(30 * DAY)
        self.pull("tilt-0")
        self.restart(killed=True)
        self.clock.advance(DAY)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-0", "tilt-2"])
        self.clock.advance(PULL_PROTECTS - DAY)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-2"])

    def test_a_pull_by_digest_is_one_of_its_tags(self) -> None:
        self.push_builds(2)
        digest = tags_in(self.database, APP)["tilt-0"]
        self.clock.advance(30 * DAY)
        self.result(self.registry.manifest(Reference(APP, digest), None, Trace()))
        self.clock.advance(DAY)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-0", "tilt-1"])

    def hold(self, nodes: Mapping[str, Collection[Digest] | None] | None) -> None:
        """Let nodes hold this from now on."""
        self.collector._images_on_nodes = lambda: succeed(nodes)

    def test_what_a_node_holds_stays_as_long_as_the_node_exists(self) -> None:
        self.push_builds(5)
        digests = tags_in(self.database, APP)
        self.clock.advance(30 * DAY)
        self.hold({"a": [digests["tilt-0"], digests["tilt-1"]], "b": [digests["tilt-2"], Digest.of(b"another")]})
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-0", "tilt-1", "tilt-2", "tilt-4"])
        # The node b does not run.
        self.hold({"a": [digests["tilt-1"]], "b": None})
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-1", "tilt-2", "tilt-4"])
        # Docker does not answer, and k3dreg is started anew.
        self.restart()
        self.hold(None)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-1", "tilt-2", "tilt-4"])
        self.hold({"a": [digests["tilt-1"]]})
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-1", "tilt-4"])
        self.hold({"a": []})
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-4"])

    def test_without_a_rule_no_node_is_asked(self) -> None:
        self.push_builds(1)
        self.collector._images_on_nodes = lambda: fail(ValueError("it was asked"))
        self.apply()

    def test_a_node_holds_a_platform_of_an_index(self) -> None:
        child = self.push(numbered(1))
        self.push(index(numbered(1)), "old")
        self.clock.advance(60)
        self.push(index(), "new")
        self.hold({"a": [child]})
        self.clock.advance(30 * DAY)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["new", "old"])

    def test_a_pull_is_written_to_the_disk_once_an_hour(self) -> None:
        self.push_builds(1)
        changes = self.count_changes()
        for _ in range(100):
            self.pull("tilt-0")
        self.assertEqual(self.count_changes() - changes, 1)
        self.clock.advance(PULL_RECORDED_EVERY)
        self.pull("tilt-0")
        self.assertEqual(self.count_changes() - changes, 2)

    def count_changes(self) -> int:
        [(count,)] = self.database.rows("SELECT total_changes()")
        return int(count)

    def test_a_pull_that_cannot_be_recorded_is_answered(self) -> None:
        self.push_builds(2)
        self.clock.advance(30 * DAY)

        def fail(*arguments: object, **more: object) -> None:
            raise StoreFull("no room")

        transact, self.database.transact = self.database.transact, fail  # type: ignore[method-assign, assignment]
        self.pull("tilt-0")
        self.database.transact = transact  # type: ignore[method-assign]
        self.pull("tilt-0")
        self.clock.advance(DAY)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["tilt-0", "tilt-1"])

    def test_what_a_push_tool_was_told_of_stays(self) -> None:
        self.push(numbered(1))
        self.push(index(numbered(1)), "old")
        self.push(numbered(2), "other")
        self.clock.advance(60)
        self.push(index(), "new")
        self.clock.advance(30 * DAY)
        # It sends an index with the same manifest next, and not the manifest.
        self.result(self.registry.manifest(Reference(APP, Digest.of(numbered(1))), None, Trace(may_decide_a_push=True)))
        self.apply("*=1")
        self.assertEqual(self.tags(), ["new", "old"])
        self.clock.advance(GRACE)
        self.apply("*=1")
        self.assertEqual(self.tags(), ["new"])
        self.assertEqual(list(manifests_in(self.database, APP)), [Digest.of(index())])


class WholeTests(RetentionCase):
    """What remains is whole."""

    def test_what_others_lead_to_stays_and_referrers_go_with_their_subject(self) -> None:
        for number in range(4):
            self.push(numbered(number))
        shared, untagged, own = numbered(0), numbered(1), numbered(2)
        self.push(index(shared, untagged, own), "old")
        self.push(index(untagged, annotations={"by": "digest"}))
        signature = image(subject=described(media_types.OCI_INDEX, index(shared, untagged, own)), artifactType="sig")
        self.push(signature)
        about_signature = image(subject=described(media_types.OCI_MANIFEST, signature), artifactType="sig")
        self.push(about_signature)
        self.clock.advance(60)
        self.push(index(shared), "new")
        self.clock.advance(GRACE + 1)
        collected = self.apply("*=1")
        self.assertEqual((len(collected.tags), collected.manifests), (1, 4))
        left = {Digest.of(data) for data in (shared, untagged, numbered(3), index(shared))}
        left.add(Digest.of(index(untagged, annotations={"by": "digest"})))
        self.assertEqual(set(manifests_in(self.database, APP)), left)
        self.assertFalse(self.store.has(Digest.of(signature)))

    def test_a_tag_that_is_pushed_meanwhile_stays_with_its_manifest(self) -> None:
        self.push_builds(2)
        self.clock.advance(30 * DAY)
        self.collector.retain([parse_rule("*=1")])
        self.workers = ManualWorkers(self.clock)
        others, self.pushed._workers = self.pushed._workers, self.workers
        collecting = Deferred.fromCoroutine(self.collector.collect())
        self.workers.work()  # the tags that expire are found
        self.clock.advance(1)
        self.push(numbered(0, b"layer app tilt-0"), "tilt-0")
        self.pushed._workers = others
        while self.workers.waiting:
            self.workers.work()
        self.assertEqual(self.successResultOf(collecting).tags, ())
        self.assertEqual(self.tags(), ["tilt-0", "tilt-1"])
        self.pull("tilt-0")

    def test_no_client_is_told_of_a_manifest_that_is_being_removed(self) -> None:
        self.push_builds(2)
        self.clock.advance(30 * DAY)
        self.collector.retain([parse_rule("*=1")])
        self.workers = ManualWorkers(self.clock)
        others, self.pushed._commits._workers = self.pushed._commits._workers, self.workers
        collecting = Deferred.fromCoroutine(self.collector.collect())
        self.assertIsNone(self.pushed.find(Reference(APP, Tag("tilt-0"))))
        self.assertIsNone(self.pushed.find(Reference(APP, Digest.of(numbered(0, b"layer app tilt-0")))))
        self.assertIsNotNone(self.pushed.find(Reference(APP, Tag("tilt-1"))))
        while self.workers.waiting:
            self.workers.work()
        self.pushed._commits._workers = others
        self.assertEqual(len(self.successResultOf(collecting).tags), 1)

    def test_many_tags_go_in_many_transactions(self) -> None:
        self.push_builds(23)
        self.clock.advance(GRACE)
        sizes = []
        transact = self.database.transact

        def count(statements, **more):  # type: ignore[no-untyped-def]
            if any("FROM tag" in sql for sql, _ in statements):
                sizes.append(len(statements))
                # Each transaction leaves only whole images.
                untagged = set(manifests_in(self.database, APP)) - set(tags_in(self.database, APP).values())
                self.assertEqual(untagged, set())
            return transact(statements, **more)

        self.database.transact = count  # type: ignore[method-assign]
        self.assertEqual(len(self.apply("*=1").tags), 22)
        self.assertEqual(sizes, [10, 10, 10, 10, 4])

    def test_one_tag_is_removed_with_what_only_it_leads_to(self) -> None:
        self.push_builds(2)
        self.assertTrue(self.result(self.pushed.remove_tag_and_manifests(APP, Tag("tilt-0"))))
        self.assertFalse(self.result(self.pushed.remove_tag_and_manifests(APP, Tag("tilt-0"))))
        self.assertEqual((self.tags(), len(manifests_in(self.database, APP))), (["tilt-1"], 1))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("tilt-*=20", RetainRule("tilt-*=20", "tilt-*", newest=20)),
        ("*-dev=14d", RetainRule("*-dev=14d", "*-dev", seconds=14 * DAY)),
        ("a/b:[x]?=12h", RetainRule("a/b:[x]?=12h", "a/b:[x]?", seconds=DAY / 2)),
        ("ghcr.io/team/app=2w", RetainRule("ghcr.io/team/app=2w", "ghcr.io/team/app", seconds=14 * DAY)),
    ],
)
def test_a_rule_is_parsed(text: str, rule: RetainRule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "app",
        "=3",
        "app=",
        "app=0",
        "app=0d",
        "app=-1",
        "app=1.5d",
        "app=3x",
        "app=d",
        "a b=3",
        "app=3 d",
        "app=\u0663",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(usage.UsageError, match="--retain"):
        parse_rule(text)


def test_a_host_in_a_pattern_is_advised_against() -> None:
    with pytest.raises(usage.UsageError, match="leave out the registry's host"):
        parse_rule("localhost:5005/app=3")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("tilt-*", True),
        ("*/web", True),
        ("shop/*", True),
        ("shop/web:tilt-*", True),
        ("*:tilt-1", True),
        ("web", False),
        ("shop/web:*-dev", False),
        ("TILT-*", False),
    ],
)
def test_a_pattern_matches_the_repository_the_tag_or_both(pattern: str, fits: bool) -> None:
    assert parse_rule(f"{pattern}=1").fits("shop/web", "tilt-1") is fits
