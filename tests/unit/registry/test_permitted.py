"""Which registries may be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.oci.errors import ManifestUnknown, RegistryNotAllowed
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.own_name_discovery import EngineImageNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.resolver import Resolver
from k3dreg.reporting.trace import Trace
from k3dreg.upstream.name_resolution import make_resolve
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import make_image
from tests.fakes.workers import InlineWorkers
from tests.unit.upstream.test_addresses import LOCAL

ADDRESSES = {
    "rebound.example": ("192.0.2.1", "127.0.0.1"),
    "linked.example": ("fe80::1",),
    "fine.example": ("192.0.2.1",),
}


class Info:
    """An engine that is asked for nothing but what it is."""

    def __init__(self, *insecure: str) -> None:
        self._info = EngineInfo(
            "", "28.5.2", (1, 51), ImageStore.CONTAINERD, "overlayfs", "/", insecure_registries=frozenset(insecure)
        )

    async def info(self) -> Any:
        return self._info


class Names:
    def __init__(self, *registries: str) -> None:
        self._registries = registries

    async def names(self) -> Any:
        return [(Repository.parse("x", registry), None) for registry in self._registries]


async def resolve(name: str) -> Sequence[str]:
    return ADDRESSES.get(name, ())


class PermittedTests(SynchronousTestCase):
    def permitted(
        self, *patterns: str, insecure: Sequence[str] = (), held: Sequence[str] = (), remote: str | None = None
    ) -> PermittedRegistries:
        engine, names = cast(Any, Info(*insecure)), cast(Any, Names(*held))
        return PermittedRegistries(patterns, engine, names, resolve, remote=remote)

    def check(self, permitted: PermittedRegistries, *registries: str) -> None:
        for registry in registries:
            self.successResultOf(Deferred.fromCoroutine(permitted.check(registry)))

    def refused(self, permitted: PermittedRegistries, *registries: str) -> RegistryNotAllowed:
        errors = [
            self.failureResultOf(Deferred.fromCoroutine(permitted.check(registry)), RegistryNotAllowed).value
            for registry in registries
        ]
        return cast(RegistryNotAllowed, errors[-1])

    def test_by_default_every_registry_may_be_asked_but_those_of_this_machine(self) -> None:
        permitted = self.permitted()
        self.check(permitted, "docker.io", "ghcr.io", "192.168.1.1:5000", "registry.corp:5000", "fine.example:80")
        self.refused(permitted, *LOCAL, "rebound.example", "Rebound.Example:5000", "linked.example")

    def test_what_is_said_is_the_same_whatever_is_there_and_says_how_to_allow_it(self) -> None:
        permitted = self.permitted()
        for registry in ("127.0.0.1:6443", "rebound.example"):
            error = self.refused(permitted, registry)
            self.assertEqual(str(error), f"k3dreg may not ask {registry} for images")
            self.assertIn(f"--allow-registry '*' --allow-registry {registry} ", error.advice)
            self.assertIn(f'K3DREG_ALLOW_REGISTRY="* {registry}"', error.advice)
        error = self.refused(self.permitted("ghcr.io"), "quay.io")
        self.assertIn("--allow-registry quay.io ", error.advice)
        self.assertIn('K3DREG_ALLOW_REGISTRY="ghcr.io quay.io"', error.advice)

    def test_a_local_registry_may_be_asked_if_it_is_the_users(self) -> None:
        self.check(self.permitted("*", "localhost:5001"), "localhost:5001", "LocalHost:5001", "ghcr.io")
        self.check(self.permitted("*", "127.0.0.1:*", "[::1]:*"), "127.0.0.1:5001", "[::1]:5001")
        self.check(self.permitted("rebound.example"), "rebound.example")
        self.check(self.permitted(insecure=["127.0.0.1:5001"]), "127.0.0.1:5001")
        self.check(self.permitted(held=["localhost:5001"]), "localhost:5001")
        self.check(self.permitted(remote="localhost:5001"), "localhost:5001")
        # Another port of the same machine is another matter, and so is another name of it.
        for permitted in (
            self.permitted("*", "localhost:5001"),
            self.permitted(insecure=["localhost:5001", "127.0.0.1"]),
            self.permitted(held=["localhost:5001"]),
            self.permitted(remote="localhost:5001"),
        ):
            self.refused(permitted, "localhost:5002", "127.0.0.1:5001", "[::1]:5001")

    def test_a_wildcard_names_no_registry_of_this_machine(self) -> None:
        self.refused(self.permitted("*", "*:5001", "12?.0.0.1:*", "*.localhost:*"), "127.0.0.1:5001", "a.localhost:1")

    def test_what_is_listed_is_all_that_may_be_asked(self) -> None:
        permitted = self.permitted("ghcr.io", "*.example", insecure=["localhost:5001"], held=["quay.io"])
        self.check(permitted, "ghcr.io", "GHCR.io", "fine.example")
        self.refused(permitted, "docker.io", "ghcr.io:444", "ghcr.io.evil.test", "quay.io", "localhost:5001")
        permitted.change(())
        self.check(permitted, "docker.io", "localhost:5001")

    def test_what_went_wrong_is_told_of_a_registry_that_the_user_has_to_do_with(self) -> None:
        permitted = self.permitted("*", "listed.example", insecure=["corp:5000"], held=["quay.io"], remote="ghcr.io")
        for registry in ("docker.io", "listed.example", "Corp:5000", "quay.io", "ghcr.io"):
            self.assertTrue(self.successResultOf(Deferred.fromCoroutine(permitted.is_known(registry))))
        for registry in ("192.168.1.1:22", "elsewhere.example", "quay.io:443"):
            self.assertFalse(self.successResultOf(Deferred.fromCoroutine(permitted.is_known(registry))))


class PullTests(SynchronousTestCase):
    """The resolver, which is where Docker would be sent to a registry."""

    def setUp(self) -> None:
        self.engine, self.clock = FakeEngine(ImageStore.CONTAINERD), Clock()
        client = self.engine.client(self.clock)
        permitted = PermittedRegistries((), client, EngineImageNames(client, InlineWorkers()), resolve)
        self.resolver = Resolver(client, self.clock, may_ask=permitted.check, is_known=permitted.is_known)
        self.auths = 0

    def ask(self, path: str, registry: str | None) -> Deferred[Any]:
        async def credentials() -> str:
            self.auths += 1
            return ""

        reference = Reference.parse(Repository.parse(path, registry), "1")
        asked = Deferred.fromCoroutine(self.resolver.image(reference, credentials, Trace()))
        self.engine.flush()
        return asked

    def test_nothing_is_pulled_nor_looked_for_from_an_address_of_this_machine(self) -> None:
        for registry in ("127.0.0.1:6443", "localhost:10250", "rebound.example"):
            self.failureResultOf(self.ask("x", registry), RegistryNotAllowed)
        # Without ns a path is this registry's own, whatever it looks like.
        self.failureResultOf(self.ask("localhost/x", None), ManifestUnknown)
        self.failureResultOf(self.ask("127.0.0.1/x", None), ManifestUnknown)
        self.assertEqual((self.engine.pulls, self.auths), ([], 0))

    def test_what_docker_holds_is_given_whatever_its_name(self) -> None:
        self.engine.add(make_image("127.0.0.1:6443/x:1"))
        self.successResultOf(self.ask("x", "127.0.0.1:6443"))

    def test_of_a_registry_that_is_not_known_no_failure_is_told_apart(self) -> None:
        said = set()
        words = ("connection refused", "x509: certificate signed by unknown authority", "manifest unknown")
        for number, failure in enumerate(words):
            self.engine.upstream[f"192.168.1.1:22/x{number}:1"] = PullError(500, failure)
            error = self.failureResultOf(self.ask(f"x{number}", "192.168.1.1:22"), ManifestUnknown).value
            said.add((str(error).replace(f"x{number}", "x"), error.advice))
        self.assertEqual(len(said), 1)


class ResolveTests(SynchronousTestCase):
    def test_a_name_that_takes_long_or_does_not_resolve_has_no_addresses(self) -> None:
        clock = cast(Any, Clock())
        clock.nameResolver = Resolving()
        resolving = make_resolve(clock)
        waiting = Deferred.fromCoroutine(cast(Any, resolving("slow.example")))
        self.assertNoResult(waiting)
        clock.advance(3)
        self.assertEqual(self.successResultOf(waiting), ())
        clock.nameResolver.receiver.resolutionComplete()
        clock.nameResolver.at_once = True
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(cast(Any, resolving("no.example")))), ())


class Resolving:
    at_once = False
    receiver: Any = None

    def resolveHostName(self, receiver: Any, name: str) -> None:
        self.receiver = receiver
        if self.at_once:
            receiver.resolutionComplete()
