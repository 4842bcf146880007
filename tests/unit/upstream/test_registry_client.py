"""The client of registries, against a registry on a real socket, with the real store."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from k3dreg.formats.basic_auth import Credentials
from k3dreg.formats.challenge import parse_challenges
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    Denied,
    DigestMismatch,
    K3dregError,
    ManifestUnknown,
    RateLimited,
    StoreFull,
    UpstreamFailed,
)
from k3dreg.oci.reference import Reference, Repository
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.blob_store import open_store
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.quiet_pool import quiet_pool
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.registry_client import RegistryClient
from k3dreg.upstream.registry_requests import check_is_elsewhere, make_origin_agent
from k3dreg.upstream.tokens import Authorizer
from tests.fakes.stores import fill_disk_after, refuse_writes
from tests.fakes.upstream import FakeUpstream
from tests.unit.upstream.test_addresses import LOCAL

BLOB = bytes(range(256)) * 8000  # 2 MB: several reads
LOGIN = Credentials("user", "Pa55-w0rd")


def an_image(config: bytes = b"{}", *layers: bytes) -> bytes:
    """A manifest."""

    def described(media_type: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": described(media_types.OCI_CONFIG, config),
            "layers": [described(media_types.OCI_LAYER, layer) for layer in layers],
        }
    ).encode()


class OriginTestCase(TestCase):
    """`self.origin` asks `self.upstream`; `self.clock` is time as tokens see it."""

    timeout = 6

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.upstream = FakeUpstream()
        self.upstream.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.upstream.stop()))
        self.workers = Workers(reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.store = await open_store(Path(self.mktemp()), self.workers, 1 << 30, reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.store.close()))
        pool = quiet_pool(reactor, persistent=False)
        self.clock = Clock()
        self.arrivals = Arrivals(self.store, self.workers)
        self.origin = RegistryClient(make_origin_agent(reactor, pool=pool), self.store, self.arrivals, self.clock)
        self.repository = Repository("127.0.0.1:" + self.upstream.host.partition(":")[2], "team/app")

    async def no_connection(self) -> None:
        """Wait until no connection to the registry is open."""
        while self.upstream.factory.protocols:
            await deferLater(reactor, 0.01)

    def reference(self, target: str) -> Reference:
        return Reference.parse(self.repository, target)

    async def fetch(self, digest: Digest, size: int | None = None, credentials: Credentials | None = None) -> bytes:
        return await content(await self.origin.fetch(self.repository, digest, size, credentials))

    async def failure(self, awaitable: Any) -> K3dregError:
        try:
            await awaitable
        except K3dregError as error:
            self.assertNotIn(LOGIN.password, f"{error!r} {error.__cause__!r}")
            return error
        raise AssertionError("it did not fail")


async def content(blob: IBlob) -> bytes:
    """What a consumer that takes everything gets."""
    consumer = StringTransport()
    await blob.send(consumer, 0, blob.size)
    return bytes(consumer.value())


class FetchingTests(OriginTestCase):
    async def test_a_blob_is_fetched_once_verified_and_kept(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.assertEqual(await self.fetch(digest), BLOB)
        self.assertEqual(await self.fetch(digest), BLOB)
        self.assertEqual(len(self.upstream.seen), 1)
        self.assertTrue(self.store.has(digest))

    async def test_a_blob_is_read_while_it_arrives_but_for_its_last_byte(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.gate = Deferred()
        blob = await self.origin.blob(self.repository, digest, None, None)
        self.assertEqual(blob.size, len(BLOB))
        half = StringTransport()
        await blob.send(half, 0, len(BLOB) // 2)
        self.assertEqual(half.value(), BLOB[: len(BLOB) // 2])
        self.assertFalse(self.store.has(digest))
        self.upstream.gate.callback(None)
        self.assertEqual(await content(blob), BLOB)

    async def test_many_who_ask_share_one_download_and_one_who_leaves_disturbs_nobody(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.gate = Deferred()
        asked = [Deferred.fromCoroutine(self.origin.fetch(self.repository, digest, None, None)) for _ in range(5)]
        await self.origin.blob(self.repository, digest, None, None)
        asked[0].addErrback(lambda failure: None)
        asked[0].cancel()
        self.upstream.gate.callback(None)
        for each in asked[1:]:
            self.assertEqual((await each).digest, digest)
        self.assertEqual(len(self.upstream.paths("blobs")), 1)

    async def test_callers_with_other_credentials_do_not_share_a_download(self) -> None:
        self.upstream.auth = "basic"
        digest = self.upstream.add_blob(BLOB)
        self.upstream.gate = Deferred()
        await self.origin.blob(self.repository, digest, None, LOGIN)
        error = await self.failure(self.origin.blob(self.repository, digest, None, None))
        self.assertIsInstance(error, AuthenticationRequired)
        self.upstream.gate.callback(None)
        await self.fetch(digest, None, LOGIN)

    async def test_a_broken_download_goes_on_where_it_broke(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.cut_after = [1_000_000, 500_000, 0, 1]
        self.assertEqual(await self.fetch(digest), BLOB)
        ranges = [seen.range for seen in self.upstream.seen]
        self.assertEqual(ranges[:2], ["", "bytes=1000000-"])
        self.assertEqual(ranges[-1], "bytes=1500001-")

    async def test_a_registry_that_ignores_ranges_is_read_from_the_start(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.ranges = False
        self.upstream.cut_after = [1_000_000]
        self.assertEqual(await self.fetch(digest), BLOB)

    async def test_a_download_that_brings_nothing_three_times_is_given_up(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.cut_after = [1_000_000, 0, 0, 0]
        error = await self.failure(self.fetch(digest))
        self.assertIsInstance(error, UpstreamFailed)
        self.assertIn("broke off at byte 1000000", str(error))
        self.assertFalse(self.store.has(digest))
        self.assertEqual(await self.fetch(digest), BLOB)  # and tried again at the next asking

    async def test_without_a_length_it_is_there_once_it_is_whole(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.lengths = False
        blob = await self.origin.blob(self.repository, digest, None, None)
        self.assertTrue(self.store.has(digest))
        self.assertEqual(await content(blob), BLOB)

    async def test_an_empty_blob_is_a_blob(self) -> None:
        self.assertEqual(await self.fetch(self.upstream.add_blob(b"")), b"")

    async def test_wrong_bytes_are_never_kept_and_never_whole(self) -> None:
        digest = Digest.of(BLOB)
        self.upstream.blobs[digest] = BLOB[:-1] + b"x"
        self.upstream.gate = Deferred()
        blob = await self.origin.blob(self.repository, digest, None, None)
        reading = Deferred.fromCoroutine(content(blob))
        self.upstream.gate.callback(None)
        await self.failure(reading)
        self.assertFalse(self.store.has(digest))

    async def test_a_blob_of_another_size_than_its_manifest_says_is_refused(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        for lengths in (True, False):
            self.upstream.lengths = lengths
            for size in (len(BLOB) - 1, len(BLOB) + 1):
                error = await self.failure(self.fetch(digest, size))
                self.assertIsInstance(error, DigestMismatch if lengths or size < len(BLOB) else UpstreamFailed)
        self.assertFalse(self.store.has(digest))

    async def test_an_answer_that_is_not_the_rest_that_was_asked_for_is_given_up(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.cut_after = [1000]
        self.upstream.skew, self.upstream.gate = 1, Deferred()
        self.assertIsInstance(await self.failure(self.fetch(digest)), UpstreamFailed)
        await self.no_connection()

    async def test_a_challenge_or_a_redirect_whose_body_does_not_end_is_given_up(self) -> None:
        self.upstream.auth, self.upstream.anonymous_tokens, self.upstream.endless = "bearer", True, True
        self.assertEqual(await self.fetch(self.upstream.add_blob(BLOB)), BLOB)
        await self.no_connection()
        self.upstream.auth, self.upstream.redirect = "none", f"http://{self.upstream.host}"
        self.assertEqual(await self.fetch(self.upstream.add_blob(BLOB[1:])), BLOB[1:])
        await self.no_connection()

    async def test_a_blob_is_passed_on_where_it_cannot_be_kept(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        refuse_writes(self)
        for _ in range(2):  # a later reader starts anew
            blob = await self.origin.blob(self.repository, digest, len(BLOB), None)
            self.assertEqual(await content(blob), BLOB)
        self.assertFalse(self.store.has(digest))
        self.assertEqual(len(self.upstream.seen), 2)

    async def test_a_disk_that_is_full_in_the_middle_of_a_download_does_not_break_it(self) -> None:
        large = os.urandom(1 << 20) * 30
        digest = self.upstream.add_blob(large)
        fill_disk_after(self, 3 << 20)
        self.upstream.cut_after = [5 << 20, 15 << 20]
        self.assertEqual(await content(await self.origin.blob(self.repository, digest, None, None)), large)
        self.assertFalse(self.store.has(digest))

    async def test_a_blob_that_must_be_kept_is_said_not_to_be(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        fill_disk_after(self, 1 << 20)
        whole = Deferred.fromCoroutine(self.origin.fetch(self.repository, digest, None, None))
        blob = await self.origin.blob(self.repository, digest, None, None)
        self.assertEqual(await content(blob), BLOB)
        self.assertIsInstance(await self.failure(whole), StoreFull)

    async def test_wrong_bytes_that_cannot_be_kept_never_look_whole(self) -> None:
        digest = Digest.of(b"other")
        self.upstream.blobs[digest] = BLOB
        refuse_writes(self)
        blob, consumer = await self.origin.blob(self.repository, digest, None, None), StringTransport()
        await self.failure(blob.send(consumer, 0, blob.size))
        self.assertLess(len(consumer.value()), len(BLOB))

    async def test_a_blob_that_is_not_there_is_said_to_be_unknown(self) -> None:
        self.assertIsInstance(await self.failure(self.fetch(Digest.of(b"other"))), BlobUnknown)
        self.assertEqual(len(self.upstream.seen), 1)

    async def test_shutting_down_tells_those_who_wait(self) -> None:
        digest = self.upstream.add_blob(BLOB)
        self.upstream.gate = Deferred()
        blob = await self.origin.blob(self.repository, digest, None, None)
        waiting = Deferred.fromCoroutine(self.origin.fetch(self.repository, digest, None, None))
        await blob.send(StringTransport(), 0, 1000)  # it is under way
        reading = Deferred.fromCoroutine(content(blob))
        self.arrivals.shutdown()
        self.assertIn("stopping", str(await self.failure(waiting)))
        await self.failure(reading)


class ManifestTests(OriginTestCase):
    async def test_a_manifest_is_verified_and_kept(self) -> None:
        data = an_image()
        digest = self.upstream.add_manifest(media_types.OCI_MANIFEST, data, "1")
        for target in (str(digest), "1"):
            descriptor, read = await self.origin.manifest(self.reference(target), None)
            self.assertEqual((descriptor.media_type, descriptor.digest, read), (media_types.OCI_MANIFEST, digest, data))
        self.assertTrue(self.store.has(digest))

    async def test_another_manifest_than_was_asked_for_is_refused(self) -> None:
        wanted = Digest.of(b"something else")
        self.upstream.manifests[str(wanted)] = (media_types.OCI_MANIFEST, an_image())
        error = await self.failure(self.origin.manifest(self.reference(str(wanted)), None))
        self.assertIsInstance(error, DigestMismatch)
        self.assertFalse(self.store.has(Digest.of(an_image())))

    async def test_a_page_is_no_manifest(self) -> None:
        self.upstream.manifests["1"] = ("text/html", b"<html>")
        self.assertIsInstance(await self.failure(self.origin.manifest(self.reference("1"), None)), UpstreamFailed)

    async def test_what_would_fill_the_memory_is_not_read(self) -> None:
        self.upstream.manifests["1"] = (media_types.OCI_MANIFEST, bytes(5 << 20))
        error = await self.failure(self.origin.manifest(self.reference("1"), None))
        self.assertIn("where at most", str(error))

    async def test_each_refusal_is_of_its_kind_and_in_the_registry_s_words(self) -> None:
        for status, kind in (
            (401, AuthenticationRequired),
            (403, Denied),
            (404, ManifestUnknown),
            (429, RateLimited),
            (500, UpstreamFailed),
        ):
            self.upstream.status = status
            error = await self.failure(self.origin.manifest(self.reference("1"), None))
            self.assertIsInstance(error, kind)
            self.assertIn(f"answered {status}: WHATEVER the words of a registry", str(error))

    async def test_an_unreachable_registry_is_told_apart_by_reason(self) -> None:
        await self.upstream.stop()
        error = await self.failure(self.origin.manifest(self.reference("1"), None))
        self.assertIn("refuses connections", str(error))
        self.upstream.listen(reactor)


class CredentialsTests(OriginTestCase):
    async def test_basic_is_shown_when_it_is_asked_for_and_then_at_once(self) -> None:
        self.upstream.auth = "basic"
        first, second = self.upstream.add_blob(b"one"), self.upstream.add_blob(b"two")
        await self.fetch(first, None, LOGIN)
        await self.fetch(second, None, LOGIN)
        shown = [seen.authorization[:6] for seen in self.upstream.seen]
        self.assertEqual(shown, ["", "Basic ", "Basic "])

    async def test_credentials_are_not_shown_to_who_does_not_ask(self) -> None:
        await self.fetch(self.upstream.add_blob(BLOB), None, LOGIN)
        self.assertEqual([seen.authorization for seen in self.upstream.seen], [""])

    async def test_without_credentials_they_are_said_to_be_needed_and_wrong_ones_to_be_wrong(self) -> None:
        for auth in ("basic", "bearer"):
            self.upstream.auth = auth
            for credentials, challenge in ((None, True), (Credentials("user", "wrong"), False)):
                error = await self.failure(self.origin.manifest(self.reference("1"), credentials))
                assert isinstance(error, AuthenticationRequired)
                self.assertEqual(error.challenge, challenge)

    async def test_a_token_is_fetched_with_the_password_and_used_until_it_expires(self) -> None:
        self.upstream.auth = "bearer"
        for name in (b"one", b"two"):
            await self.fetch(self.upstream.add_blob(name), None, LOGIN)
        self.assertEqual(
            self.upstream.paths("token"), ["/token?service=here&scope=repository%3Ateam%2Fapp%3Apull&account=user"]
        )
        self.clock.advance(291)
        await self.fetch(self.upstream.add_blob(b"three"), None, LOGIN)
        self.assertEqual(len(self.upstream.paths("token")), 2)

    async def test_a_token_that_ends_before_its_time_is_fetched_anew(self) -> None:
        self.upstream.auth = "bearer"
        await self.fetch(self.upstream.add_blob(b"one"), None, LOGIN)
        self.upstream.tokens = {"other"}
        self.assertEqual(await self.fetch(self.upstream.add_blob(b"two"), None, LOGIN), b"two")

    async def test_tokens_are_given_to_nobody_in_particular_too(self) -> None:
        self.upstream.auth, self.upstream.anonymous_tokens = "bearer", True
        self.assertEqual(await self.fetch(self.upstream.add_blob(BLOB)), BLOB)
        self.assertEqual([s.authorization for s in self.upstream.seen if "/token" in s.path], [""])

    async def test_one_caller_s_token_is_not_used_for_another(self) -> None:
        self.upstream.auth = "bearer"
        await self.fetch(self.upstream.add_blob(b"one"), None, LOGIN)
        error = await self.failure(self.fetch(self.upstream.add_blob(b"two")))
        self.assertIsInstance(error, AuthenticationRequired)

    async def test_an_identity_token_is_posted(self) -> None:
        self.upstream.auth = "bearer"
        identity = Credentials(identity_token=self.upstream.identity_token)
        self.assertEqual(await self.fetch(self.upstream.add_blob(BLOB), None, identity), BLOB)
        [posted] = [seen for seen in self.upstream.seen if seen.method == "POST"]
        self.assertEqual(posted.path, "/token")

    async def test_a_registry_token_is_shown_as_it_is(self) -> None:
        self.upstream.auth = "bearer"
        self.upstream.tokens = {"ready-made"}
        token = Credentials(registry_token="ready-made")
        self.assertEqual(await self.fetch(self.upstream.add_blob(BLOB), None, token), BLOB)
        self.assertEqual(self.upstream.paths("token"), [])

    async def test_a_token_server_without_tls_gets_nothing(self) -> None:
        self.upstream.auth, self.upstream.realm = "bearer", "http://tokens.example/token"
        error = await self.failure(self.fetch(self.upstream.add_blob(BLOB), None, LOGIN))
        self.assertIn("does not use TLS", str(error))

    async def test_a_token_server_on_this_machine_is_only_asked_for_a_registry_on_it(self) -> None:
        asked: list[str] = []
        authorizer = Authorizer(cast(Any, Counting(asked)), Clock())
        challenge = parse_challenges('Bearer realm="https://169.254.169.254/latest/meta-data"')
        with self.assertRaises(UpstreamFailed):
            await authorizer.answer(challenge, Repository.parse("x", "registry.example"), None)
        self.assertEqual(asked, [])


class Counting:
    """Requests that are only counted."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    async def get(self, url: str, headers: Mapping[str, str], authorization: str = "") -> NoReturn:
        self._asked.append(url)
        raise UpstreamFailed("it refuses connections")


class RedirectTests(OriginTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.storage = FakeUpstream()
        self.storage.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.storage.stop()))
        self.upstream.auth = "basic"
        self.upstream.redirect = f"http://{self.storage.host}"
        self.digest = Digest.of(BLOB)
        self.storage.blobs[self.digest] = BLOB

    async def test_credentials_stay_with_the_registry_when_it_sends_us_elsewhere(self) -> None:
        self.assertEqual(await self.fetch(self.digest, None, LOGIN), BLOB)
        self.assertEqual([seen.authorization for seen in self.storage.seen], [""])

    async def test_a_broken_download_asks_the_registry_again_for_where_to_go(self) -> None:
        self.storage.cut_after = [1_000_000]
        self.assertEqual(await self.fetch(self.digest, None, LOGIN), BLOB)
        self.assertEqual([seen.range for seen in self.storage.seen], ["", "bytes=1000000-"])
        self.assertEqual([seen.authorization for seen in self.storage.seen], ["", ""])

    async def test_a_storage_that_asks_for_credentials_gets_none(self) -> None:
        self.storage.status = 401
        self.storage.complaint = b""
        error = await self.failure(self.fetch(self.digest, None, LOGIN))
        self.assertIsInstance(error, AuthenticationRequired)
        self.assertEqual([seen.authorization for seen in self.storage.seen], [""])

    async def test_a_registry_elsewhere_sends_us_to_no_address_of_this_machine(self) -> None:
        for host in (each for each in LOCAL if not each.startswith("127.0.0.1")):
            for scheme in ("http", "https"):
                with self.assertRaises(UpstreamFailed):
                    check_is_elsewhere(host, "registry.example")
                self.upstream.redirect = f"{scheme}://user@{host}/v2/?"
                asked = len(self.upstream.seen)
                with self.assertRaisesRegex(UpstreamFailed, "to an address of this machine or its link"):
                    # Another name of this machine than the one that it is asked by.
                    await self.fetch(self.digest, None, LOGIN)
                # Its refusal, and the redirect.
                self.assertLessEqual(len(self.upstream.seen) - asked, 2)
        self.assertEqual(self.storage.seen, [])

    async def test_a_redirect_for_ever_costs_a_handful_of_requests(self) -> None:
        self.upstream.redirect = f"http://{self.upstream.host}/v2/team/app/blobs/{self.digest}?"
        self.assertIn("for ever", str(await self.failure(self.fetch(self.digest, None, LOGIN))))
        self.assertLess(len(self.upstream.seen), 6)

    async def test_redirects_to_an_unprotected_place_or_for_ever_are_not_followed(self) -> None:
        self.upstream.redirect = "http://storage.example"
        self.assertIn("without TLS", str(await self.failure(self.fetch(self.digest, None, LOGIN))))
        self.upstream.redirect = f"http://{self.upstream.host}/v2/team/app/blobs/{self.digest}?"
        self.assertIn("for ever", str(await self.failure(self.fetch(self.digest, None, LOGIN))))
