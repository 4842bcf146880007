"""Every way in which a pull by Docker fails, made on every engine, and what k3dreg tells the node of it.

pytest -s tests/integration/test_engine_words.py     also prints the engines' own words
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.fakes.certificates import Authority
from tests.integration.support import rig
from tests.integration.support.daemon import REGISTRIES, Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.private import basic, request
from tests.integration.support.rig import EngineAddress
from tests.integration.support.scripted import Reply, Scripted, an_image, an_index, refusal

pytestmark = pytest.mark.every_engine

# Status, code, and whether it asks for credentials.
Told = tuple[int, str, bool]
Ask = Callable[..., tuple[Told, str]]

CREDENTIALS = basic("user", "n0t-the-passw0rd")
WORDS = "the words of a registry"


def page(status: int, title: str) -> Reply:
    """What a proxy in front of a registry says."""
    body = f"<html>\r\n<head><title>{status} {title}</title></head><body>nginx</body></html>"
    return Reply(status, (("Content-Type", "text/html"),), body.encode())


@frozen
class Case:
    """`reply` is the registry's to everything, or to what `pattern` says.

    `told` are the answers of k3dreg that are right.  `shown` is
    what the client sends.  `remembered`: a second client does not make Docker ask the registry again.
    """

    name: str
    reply: Reply | None
    told: tuple[Told, ...]
    pattern: str = "/v2/REPOSITORY/"
    shown: str = ""
    remembered: bool = True


ABSENT = (404, "MANIFEST_UNKNOWN", False)
ASKED = (401, "UNAUTHORIZED", True)
NOT_TAKEN = (401, "UNAUTHORIZED", False)
DENIED = (403, "DENIED", False)
LIMITED = (503, "TOOMANYREQUESTS", False)
FAILED = (502, "UNAVAILABLE", False)
BROKEN_OFF = (503, "UNAVAILABLE", False)

BASIC = {"WWW_Authenticate": 'Basic realm="tests"'}
BEARER = {"WWW_Authenticate": 'Bearer realm="http://ADDRESS/token/REPOSITORY",service="tests"'}
UNAUTHORIZED = ("UNAUTHORIZED", "authentication required")
LIMIT = "You have reached your pull rate limit. You may increase the limit by authenticating"
GOOGLE = 'Unauthenticated request. Unauthenticated requests do not have permission "downloadArtifacts" on resource "x"'

CASES = [
    Case("no such image", refusal(404, "MANIFEST_UNKNOWN", "manifest unknown"), (ABSENT,)),
    Case("no such repository", refusal(404, "NAME_UNKNOWN", "repository name not known to registry"), (ABSENT,)),
    Case("not found, as a page", page(404, "Not Found"), (ABSENT,)),
    Case("no credentials", refusal(401, *UNAUTHORIZED, **BASIC), (ASKED,), "/v2/"),
    Case("wrong credentials", refusal(401, *UNAUTHORIZED, **BASIC), (NOT_TAKEN,), "/v2/", CREDENTIALS),
    Case("401 without a challenge", refusal(401, *UNAUTHORIZED), (ASKED,)),
    Case("no token without a password", refusal(401, *UNAUTHORIZED), (ASKED,), "/token/REPOSITORY"),
    Case("no token for a password", refusal(401, *UNAUTHORIZED), (NOT_TAKEN,), "/token/REPOSITORY", CREDENTIALS),
    Case("no token, in own words", refusal(401, "UNAUTHORIZED", "Access denied"), (ASKED,), "/token/REPOSITORY"),
    Case("no token, as Google says it", refusal(403, "DENIED", GOOGLE), (ASKED,), "/token/REPOSITORY"),
    Case("the token server fails", refusal(503), (FAILED,), "/token/REPOSITORY"),
    Case("denied to the anonymous", refusal(403, "DENIED", "requested access to the resource is denied"), (ASKED,)),
    Case("denied", refusal(403, "DENIED", "requested access to the resource is denied"), (DENIED,), shown=CREDENTIALS),
    Case("denied, as a page", page(403, "Forbidden"), (DENIED, NOT_TAKEN), shown=CREDENTIALS),
    Case("rate limit", refusal(429, "TOOMANYREQUESTS", LIMIT), (LIMITED,)),
    Case("rate limit at a layer", refusal(429, "TOOMANYREQUESTS", LIMIT), (LIMITED,), "/blobs/LAYER"),
    Case("the registry fails", refusal(500, "UNKNOWN", WORDS), (FAILED,)),
    Case("the registry fails, as a page", page(502, "Bad Gateway"), (FAILED,)),
    Case("the registry hangs up", Reply(None), (FAILED,)),
    Case("a manifest that is none", Reply(200, (), b"{}"), (FAILED, BROKEN_OFF), "/manifests/1", remembered=False),
    Case("a layer is not there", refusal(404, "BLOB_UNKNOWN", "blob unknown to registry"), (FAILED,), "/blobs/LAYER"),
    Case("a layer is another", Reply(200, (), bytes(300_000)), (FAILED,), "/blobs/LAYER"),
]


@pytest.fixture(scope="module")
def registry() -> Iterator[Scripted]:
    with Scripted() as registry:
        yield registry


@pytest.fixture(scope="module")
def daemon(engine: EngineAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that may ask every registry of these tests, and tells clients what is wrong there."""
    listed = f"{REGISTRIES} {own_address()}:* registry.onion"
    with running(engine, tmp_path_factory.mktemp("words"), registries=listed) as daemon:
        yield daemon


@pytest.fixture
def ask(daemon: Daemon) -> Ask:
    """ask(host, repository, authorization, reference): what a node is told, and in which words."""

    def ask(host: str, repository: str, shown: str, reference: str = "1") -> tuple[Told, str]:
        path = f"/v2/{repository}/manifests/{reference}?ns={host}"
        response, body = request(daemon.host, "GET", path, {"Authorization": shown} if shown else {})
        if response.status == 200:
            return (200, "", False), ""
        (error,) = json.loads(body)["errors"]
        challenge = response.headers.get("WWW-Authenticate", "").startswith("Basic ")
        words = error["message"]
        assert words.isprintable()
        assert "<html" not in words
        assert "/data/" not in words, "a path of the engine's host"
        daemon.wait_for(re.escape(words[:200]))
        return (response.status, error["code"], challenge), words

    return ask


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_what_a_registry_says_reaches_the_node_as_what_it_is(
    case: Case,
    engine: EngineAddress,
    registry: Scripted,
    ask: Ask,
) -> None:
    repository = f"words/{engine.name}/{case.name.replace(' ', '-').replace(',', '').lower()}"
    image = an_image()
    registry.hold(repository, image)

    def filled(text: str) -> str:
        text = text.replace("REPOSITORY", repository).replace("LAYER", image.layers[0])
        return text.replace("ADDRESS", registry.address)

    assert case.reply is not None
    registry.rules = [(filled(case.pattern), _filled(case.reply, filled))]
    if "/token/" in case.pattern:
        registry.rules.append(("/v2/", _filled(refusal(401, *UNAUTHORIZED, **BEARER), filled)))
    try:
        told, words = ask(registry.address, repository, case.shown)
        print(f"{engine.name} | {case.name} | {told[0]} {told[1]} | {words}")
        assert told in case.told
        asked = len(registry.seen)
        assert ask(registry.address, repository, case.shown)[0] == told
        if case.remembered:
            assert len(registry.seen) == asked, "the second client made Docker ask again"
    finally:
        registry.rules = []
        Docker(engine.socket).remove(f"{registry.address}/{repository}:1")


def _filled(reply: Reply, filled: Callable[[str], str]) -> Reply:
    headers = tuple((name, filled(value)) for name, value in reply.headers)
    return Reply(reply.status, headers, reply.body, reply.after, reply.cut, reply.reset)


def test_so_does_an_image_for_other_platforms_only(engine: EngineAddress, registry: Scripted, ask: Ask) -> None:
    repository = f"words/{engine.name}/platform"
    registry.hold(repository, an_index([(an_image(architecture="s390x"), "s390x")]))
    told, words = ask(registry.address, repository, "")
    print(f"{engine.name} | platform | {told[0]} {told[1]} | {words}")
    assert told == ABSENT
    assert "no match" in words


def test_and_a_registry_that_cannot_be_reached(engine: EngineAddress, tmp_path: Path, ask: Ask) -> None:
    here = own_address()
    authority = Authority()
    pair = authority.sign(here)
    (tmp_path / "both.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    # Of loopback addresses engines expect no TLS, so these two are at another address of this machine.
    with Scripted(here) as plain, Scripted(here, context) as unknown:
        for name, host, reason in (
            ("refused", "127.0.0.1:1", "connection refused"),
            ("no TLS", plain.address, "HTTP response to HTTPS client"),
            ("a certificate nobody knows", unknown.address, "x509"),
            # A name that resolvers give up without asking anybody (RFC 7686).
            ("no such host", "registry.onion", "registry.onion"),
        ):
            told, words = ask(host, f"words/{engine.name}", "")
            print(f"{engine.name} | {name} | {told[0]} {told[1]} | {words}")
            assert told == FAILED
            assert reason in words


def test_and_a_disk_of_dockers_that_is_full(engine: EngineAddress, registry: Scripted, ask: Ask) -> None:
    repository = f"words/{engine.name}/full"
    image = an_image()
    registry.hold(repository, an_index([(image, "amd64")]))
    data = engine.directory / "data"
    content = data / "containerd/daemon/io.containerd.content.v1.content"
    with full_disk(content if engine.containerd_store else data / "tmp"):
        if engine.containerd_store:
            (content / "blobs/sha256").mkdir(parents=True)
            (content / "ingest").mkdir()
        told, words = ask(registry.address, repository, "")
        by_digest, _ = ask(registry.address, repository, "", image.root)
    print(f"{engine.name} | disk full | {told[0]} {told[1]} | {words}")
    assert told == FAILED
    assert "no space left on device" in words
    # Docker's trouble is no answer of the registry's: k3dreg asks again at once, for the digest and for the tag.
    again, _ = ask(registry.address, repository, "", image.root)
    if engine.containerd_store:
        assert (by_digest, again[0]) == (FAILED, 200)
    else:
        # A classic store keeps no manifest of a registry's.
        assert (by_digest, again) == (ABSENT, ABSENT)
    assert ask(registry.address, repository, "")[0][0] == 200
    Docker(engine.socket).remove(f"{registry.address}/{repository}:1")


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """The directory, with no room in it, for the time of a `with`."""
    directory.mkdir(parents=True, exist_ok=True)  # an engine that has pulled nothing yet has none
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def own_address() -> str:
    """An address of this machine that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.connect(("192.0.2.1", 9))  # tells the way there; nothing is sent
        except OSError:
            rig.unavailable("this machine has no address but its loopback:")
        return str(udp.getsockname()[0])
