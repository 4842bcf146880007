"""The client of registries: whom it talks to without TLS, and whose certificate it takes."""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL.crypto import X509, PKey
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, CertificateOptions
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Site
from twisted.web.static import Data

from k3dreg.oci.errors import UpstreamFailed
from k3dreg.oci.user_agent import USER_AGENT
from k3dreg.streaming.quiet_pool import quiet_pool
from k3dreg.upstream.registry_requests import Requests, base_url, is_loopback, make_origin_agent
from tests.fakes.upstream import FakeUpstream


class TlsTests(TestCase):
    """What is not this machine by name is talked to over TLS, so these ask for `https` by hand."""

    def listen(self, factory: Any) -> str:
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"https://127.0.0.1:{port.getHost().port}/"

    async def ask(self, url: str, trust_root: Any = None) -> bytes:
        pool = quiet_pool(reactor, persistent=False)
        requests = Requests(make_origin_agent(reactor, trust_root=trust_root, pool=pool), Clock())
        return await requests.read(await requests.get(url, {}, "Basic s3cret"), 100)

    async def failure(self, url: str, trust_root: Any = None) -> str:
        try:
            await self.ask(url, trust_root)
        except UpstreamFailed as error:
            return str(error)
        raise AssertionError("it did not fail")

    async def test_a_certificate_that_is_trusted_and_of_the_host_is_taken_and_no_other(self) -> None:
        for name, trusted, expected in (
            ("127.0.0.1", True, ""),
            ("127.0.0.1", False, "certificate is not trusted"),
            ("127.0.0.2", True, "certificate is not trusted"),
        ):
            key, certificate = self_signed(name)
            options = CertificateOptions(privateKey=key, certificate=certificate)
            page = Data(b"hello", "text/plain")
            page.isLeaf = True
            url = self.listen(TLSMemoryBIOFactory(options, False, Site(page)))
            root = Certificate(certificate) if trusted else None
            if expected:
                self.assertIn(expected, await self.failure(url, root))
            else:
                self.assertEqual(await self.ask(url, root), b"hello")

    async def test_a_plain_server_is_told_of_and_learns_nothing(self) -> None:
        RefusesTls.heard = b""
        url = self.listen(Factory.forProtocol(RefusesTls))
        self.assertIn("does not speak TLS", await self.failure(url))
        self.assertNotIn(b"s3cret", RefusesTls.heard)

    async def test_a_number_is_not_the_name_of_a_host(self) -> None:
        self.assertIn("not the name of a host", await self.failure("https://2130706433:5000/"))

    async def test_a_registry_that_is_k3dreg_itself_can_know_its_own_requests(self) -> None:
        up = FakeUpstream()
        up.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(up.stop()))
        await self.ask(f"http://{up.host}/v2/")
        self.assertEqual([seen.agent for seen in up.seen], [USER_AGENT])


class RefusesTls(Protocol):
    """As a plain HTTP server answers a TLS hello."""

    heard = b""

    def dataReceived(self, data: bytes) -> None:
        RefusesTls.heard += data
        assert self.transport is not None
        self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        self.transport.loseConnection()


def self_signed(address: str) -> tuple[PKey, X509]:
    """A key, and a certificate for an IP address that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return PKey.from_cryptography_key(key), X509.from_cryptography(certificate)


class AddressTests(SynchronousTestCase):
    def test_only_this_machine_by_its_own_name_goes_without_tls(self) -> None:
        self.assertEqual(base_url("docker.io"), "https://registry-1.docker.io")
        self.assertEqual(base_url("ghcr.io"), "https://ghcr.io")
        for host in ("localhost:5000", "127.0.0.1", "127.8.9.1:80", "[::1]:5000"):
            self.assertEqual(base_url(host), f"http://{host}")
        for host in ("localhost.example", "127.0.0.1.example", "128.0.0.1", "[::2]:5000", "2130706433"):
            self.assertFalse(is_loopback(host))
