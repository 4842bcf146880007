"""Credentials as values, Docker's config.json, and the order of the places they come from."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.config.remote import Remote
from k3dreg.credentials.chain import CredentialChain, make_chain
from k3dreg.credentials.docker_config import BadConfig, DockerConfig, helper_key
from k3dreg.credentials.docker_config_file import ConfigFile, config_path
from k3dreg.credentials.helpers import HelperFailed
from k3dreg.formats.basic_auth import BasicAuth, Credentials, registry_auth
from tests.fakes.workers import InlineWorkers

SECRET = "Pa55:wörd"
LOGIN = Credentials("user", SECRET)
HUB = "https://index.docker.io/v1/"


def sent(value: str) -> Any:
    """What an engine reads in an `X-Registry-Auth`: Go's padded URL alphabet, nothing else."""
    assert len(value) % 4 == 0
    assert not set(value) & set("+/")
    return json.loads(base64.urlsafe_b64decode(value))


def encoded(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def config(**members: Any) -> DockerConfig:
    return DockerConfig.parse(json.dumps(members).encode())


# -- values -------------------------------------------------------------------------------------


def test_a_password_is_sent_with_the_host_it_is_for() -> None:
    expected = {"username": "user", "password": SECRET, "serveraddress": "ghcr.io"}
    assert sent(registry_auth(LOGIN, "ghcr.io")) == expected
    assert sent(registry_auth(BasicAuth("user", SECRET), "ghcr.io")) == expected


def test_no_host_leaves_the_credentials_to_the_image_s_own() -> None:
    assert sent(registry_auth(LOGIN, None)) == {"username": "user", "password": SECRET}


def test_the_value_is_padded_and_of_the_url_alphabet_whatever_its_length() -> None:
    for length in range(40):
        assert sent(registry_auth(Credentials("u", "?>~" * length), None))["password"] == "?>~" * length


def test_the_user_token_means_an_identity_token() -> None:
    assert sent(registry_auth(BasicAuth("<token>", SECRET), None)) == {"identitytoken": SECRET}
    assert Credentials.login("<token>", SECRET) == Credentials(identity_token=SECRET)


def test_a_registry_token_is_sent_as_one() -> None:
    assert sent(registry_auth(Credentials(registry_token=SECRET), None)) == {"registrytoken": SECRET}


@pytest.mark.parametrize(
    "value",
    [
        LOGIN,
        Credentials(identity_token=SECRET),
        Credentials(registry_token=SECRET),
        BasicAuth("user", SECRET),
        registry_auth(LOGIN, None),
        config(auths={"a.io": {"username": "user", "password": SECRET}}),
    ],
)
def test_no_repr_shows_a_secret(value: object) -> None:
    shown = f"{value!r} {(value,)} {[value]}"
    assert SECRET not in shown
    assert base64.b64encode(SECRET.encode()).decode()[:8] not in shown
    assert "eyJ" not in shown  # how the base64 of a JSON object begins


# -- config.json --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        (HUB, "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("http://10.0.0.1:5000/", "10.0.0.1:5000"),
        ("GHCR.io", "ghcr.io"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_keys_are_hosts_in_the_ways_docker_has_written_them(key: str, registry: str) -> None:
    read = config(auths={key: {"auth": encoded("user", SECRET)}})
    assert read.auth_for(registry) == LOGIN


@pytest.mark.parametrize(("key", "registry"), [("ghcr.io", "ghcr.io:443"), ("ghcr.io", "cr.io"), (HUB, "quay.io")])
def test_another_host_or_port_gets_nothing(key: str, registry: str) -> None:
    assert config(auths={key: {"auth": encoded("user", SECRET)}}).auth_for(registry) is None


def test_tokens_of_a_browser_login_to_the_hub_are_not_for_its_registry() -> None:
    entry = {"auth": encoded("user", "jwt")}
    assert config(auths={f"{HUB}access-token": entry, f"{HUB}refresh-token": entry}).auth_for("docker.io") is None


def test_the_whole_host_comes_before_a_path_of_it_in_either_order() -> None:
    whole, part = {"auth": encoded("whole", "x")}, {"auth": encoded("part", "x")}
    for auths in ({"q.io": whole, "q.io/team": part}, {"q.io/team": part, "q.io": whole}):
        found = config(auths=auths).auth_for("q.io")
        assert found is not None
        assert found.username == "whole"
    alone = config(auths={"q.io/team": part}).auth_for("q.io")
    assert alone is not None


def test_all_forms_of_an_entry_are_read() -> None:
    read = config(
        auths={
            "plain.io": {"username": "user", "password": SECRET},
            "padded.io": {"auth": base64.b64encode(f"user:{SECRET}\0\0".encode()).decode()},
            "identity.io": {"auth": encoded("00000000-0000-0000-0000-000000000000", ""), "identitytoken": "i"},
            "registry.io": {"registrytoken": "r"},
            "empty.io": {},
            "broken.io": {"auth": "%%%"},
            "odd.io": {"auth": 5},
            "list.io": [],
        }
    )
    assert read.auths == {
        "plain.io": LOGIN,
        "padded.io": LOGIN,
        "identity.io": Credentials(identity_token="i"),
        "registry.io": Credentials(registry_token="r"),
    }


def test_a_host_s_own_helper_comes_before_the_store() -> None:
    read = config(credHelpers={"gcr.io": "gcloud", HUB: "pass"}, credsStore="desktop")
    assert [read.helper_for(host) for host in ("gcr.io", "docker.io", "ghcr.io")] == ["gcloud", "pass", "desktop"]
    assert config().helper_for("ghcr.io") == ""


def test_helpers_are_asked_for_the_hub_as_docker_asks_them() -> None:
    assert helper_key("docker.io") == HUB
    assert helper_key("ghcr.io:444") == "ghcr.io:444"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_config_says_so_without_quoting_it(data: bytes) -> None:
    with pytest.raises(BadConfig):
        DockerConfig.parse(data)


def test_a_broken_config_s_text_is_not_in_its_error() -> None:
    with pytest.raises(BadConfig) as raised:
        DockerConfig.parse(b'{"auths": "' + SECRET.encode())
    assert SECRET not in repr(raised.value)
    assert raised.value.__cause__ is None


def test_the_config_is_where_docker_has_it() -> None:
    assert config_path({"HOME": "/home/u"}) == Path("/home/u/.docker/config.json")
    assert config_path({"HOME": "/home/u", "DOCKER_CONFIG": "/etc/d"}) == Path("/etc/d/config.json")


# -- the file, and the chain --------------------------------------------------------------------


class FakeHelpers:
    """Helpers by name: what they have, or an exception."""

    def __init__(self, **answers: Credentials | HelperFailed | None) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []

    async def is_installed(self, name: str) -> bool:
        return name in self.answers

    async def get(self, name: str, registry: str, extra: object = None) -> Credentials | None:
        self.asked.append((name, registry))
        answer = self.answers[name]
        if isinstance(answer, HelperFailed):
            raise answer
        return answer


class LoggingTestCase(SynchronousTestCase):
    """Keeps what is logged as text, as it would be written."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        observer = cast(ILogObserver, self._keep)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def _keep(self, event: LogEvent) -> None:
        text = event.get("log_format") or ""
        self.lines.append(text.format(**event) + repr({k: v for k, v in event.items() if not k.startswith("log_")}))


class ConfigFileTests(LoggingTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        self.path.mkdir(parents=True)
        self.path /= "config.json"
        self.helpers = FakeHelpers(good=LOGIN, none=None, bad=HelperFailed("docker-credential-bad is not on the PATH"))
        self.file = ConfigFile(self.path, InlineWorkers(), self.helpers)  # type: ignore[arg-type]

    def write(self, **members: Any) -> None:
        self.path.write_text(json.dumps(members))

    def find(self, registry: str) -> Credentials | None:
        return self.successResultOf(Deferred.fromCoroutine(self.file.credentials(registry)))

    def test_no_file_means_no_credentials_and_no_complaint(self) -> None:
        self.assertIsNone(self.find("ghcr.io"))
        self.assertEqual(self.lines, [])

    def test_a_login_counts_at_once_and_so_does_a_logout(self) -> None:
        self.assertIsNone(self.find("ghcr.io"))
        self.write(auths={"ghcr.io": {"auth": encoded("user", SECRET)}})
        self.assertEqual(self.find("ghcr.io"), LOGIN)
        self.write(auths={})
        self.assertIsNone(self.find("ghcr.io"))
        self.path.unlink()
        self.assertIsNone(self.find("ghcr.io"))

    def test_a_file_that_did_not_change_is_not_read_again(self) -> None:
        self.write(auths={"ghcr.io": {"auth": encoded("user", SECRET)}})
        os.utime(self.path, ns=(1, 1))
        self.find("ghcr.io")
        same_size = self.path.read_bytes().replace(b"ghcr.io", b"quay.io")
        with self.path.open("r+b") as file:
            file.write(same_size)
        os.utime(self.path, ns=(1, 1))
        self.assertEqual(self.find("ghcr.io"), LOGIN)
        os.utime(self.path, ns=(2, 2))
        self.assertIsNone(self.find("ghcr.io"))

    def test_a_broken_file_is_told_of_once_and_again_when_it_is_mended_and_broken_again(self) -> None:
        for _ in range(3):
            self.path.write_text("{" + SECRET)
            os.utime(self.path, ns=(3, 3))
            self.assertIsNone(self.find("ghcr.io"))
        self.assertEqual(len(self.lines), 1)
        self.write()
        self.find("ghcr.io")
        self.path.write_text("{")
        self.find("ghcr.io")
        self.assertEqual(len(self.lines), 2)
        self.assertNotIn(SECRET, "".join(self.lines))

    def test_a_directory_or_pipe_in_its_place_is_a_broken_file(self) -> None:
        for number, make in enumerate((os.mkfifo, os.mkdir)):
            make(self.path)
            self.assertIsNone(self.find("ghcr.io"))
            self.assertIn("not a regular file", self.lines[0])
            self.path.rename(f"{self.path}-{number}")

    def test_the_helper_in_charge_is_asked(self) -> None:
        self.write(credHelpers={"ghcr.io": "good"}, credsStore="none")
        self.assertEqual(self.find("ghcr.io"), LOGIN)
        self.assertIsNone(self.find("docker.io"))
        self.assertEqual(self.helpers.asked, [("good", "ghcr.io"), ("none", HUB)])

    def test_a_helper_in_trouble_is_logged_and_the_file_s_own_entry_counts(self) -> None:
        self.write(credsStore="bad", auths={"ghcr.io": {"auth": encoded("user", SECRET)}})
        self.assertEqual(self.find("ghcr.io"), LOGIN)
        self.assertIn("docker-credential-bad is not on the PATH", self.lines[0])
        self.assertNotIn(SECRET, "".join(self.lines))


class Finder:
    """A place with one host's credentials."""

    def __init__(self, name: str, **found: Credentials) -> None:
        self.name = name
        self.found = found
        self.not_taken: list[str] = []

    async def credentials(self, registry: str) -> Credentials | None:
        return self.found.get(registry)

    def refused(self, registry: str) -> None:
        self.not_taken.append(registry)


class CredentialChainTests(LoggingTestCase):
    def test_the_first_place_that_has_some_counts(self) -> None:
        other = Credentials("other", "x")
        chain = CredentialChain([Finder("a", both=LOGIN), Finder("b", both=other, second=other)])
        found = {host: chain.credentials(host) for host in ("both", "second", "none")}
        self.assertEqual(
            {host: self.successResultOf(Deferred.fromCoroutine(it)) for host, it in found.items()},
            {"both": LOGIN, "second": other, "none": None},
        )
        self.assertNotIn(SECRET, "".join(self.lines))

    def test_those_it_was_started_with_are_for_their_registry_and_come_first(self) -> None:
        Path("config.json").write_text(json.dumps({"auths": {HUB: {"auth": encoded("a", "b")}}}))
        environment = {"DOCKER_CONFIG": "."}
        workers = InlineWorkers()
        for remote, hub in (
            (Remote(None, LOGIN), LOGIN),
            (Remote("docker.io", LOGIN), LOGIN),
            (Remote("ghcr.io", LOGIN), Credentials("a", "b")),
            (Remote(), Credentials("a", "b")),
        ):
            chain = make_chain(workers.clock, workers, environment, remote)
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(chain.credentials("docker.io"))), hub)
            found = self.successResultOf(Deferred.fromCoroutine(chain.credentials("ghcr.io")))
            self.assertEqual(found, LOGIN if remote.only == "ghcr.io" else None)
        self.assertNotIn(SECRET, "".join(self.lines))

    def test_docker_auth_config_comes_before_the_file_for_the_hosts_that_it_names(self) -> None:
        file = {"auths": {host: {"auth": encoded("file", "f")} for host in (HUB, "ghcr.io", "quay.io")}}
        Path("config.json").write_text(json.dumps(file))
        auths = {HUB: {"auth": encoded("user", SECRET)}, "ghcr.io": {"auth": encoded("user", SECRET)}, "a.io": {}}
        found = self.found_in(json.dumps({"auths": auths}), "docker.io", "ghcr.io", "quay.io", "a.io")
        self.assertEqual(found, [LOGIN, LOGIN, Credentials("file", "f"), None])
        self.assertNotIn(SECRET, "".join(self.lines))

    def test_a_docker_auth_config_that_is_broken_is_told_of_once_and_the_file_counts(self) -> None:
        Path("config.json").write_text(json.dumps({"auths": {"ghcr.io": {"auth": encoded("file", "f")}}}))
        found = self.found_in("{" + SECRET, "ghcr.io", "ghcr.io")
        self.assertEqual(found, [Credentials("file", "f")] * 2)
        complaints = [line for line in self.lines if "DOCKER_AUTH_CONFIG" in line]
        self.assertEqual(len(complaints), 1)
        self.assertIn("not JSON", complaints[0])
        self.assertNotIn(SECRET, "".join(self.lines))

    def test_an_empty_docker_auth_config_is_none(self) -> None:
        Path("config.json").write_text(json.dumps({"auths": {"ghcr.io": {"auth": encoded("file", "f")}}}))
        self.assertEqual(self.found_in("", "ghcr.io"), [Credentials("file", "f")])
        self.assertNotIn("DOCKER_AUTH_CONFIG", "".join(self.lines))

    def found_in(self, value: str, *registries: str) -> list[Credentials | None]:
        """What a chain finds with this `DOCKER_AUTH_CONFIG` and the working directory's `config.json`."""
        workers = InlineWorkers()
        chain = make_chain(workers.clock, workers, {"DOCKER_CONFIG": ".", "DOCKER_AUTH_CONFIG": value})
        return [self.successResultOf(Deferred.fromCoroutine(chain.credentials(host))) for host in registries]

    def test_every_place_hears_that_a_registry_did_not_take_them(self) -> None:
        places = [Finder("a"), Finder("b")]
        CredentialChain(places).refused("host")
        self.assertEqual([place.not_taken for place in places], [["host"], ["host"]])

    def test_they_become_what_the_engine_takes(self) -> None:
        chain = CredentialChain([Finder("a", host=LOGIN)])
        value = self.successResultOf(Deferred.fromCoroutine(chain.registry_auth("host")))
        self.assertEqual(sent(value), {"username": "user", "password": SECRET, "serveraddress": "host"})
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(chain.registry_auth("other"))), "")
