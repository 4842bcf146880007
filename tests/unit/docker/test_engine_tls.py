"""An engine behind TLS, over real sockets: who is trusted, and what is said when somebody is not."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    trustRootFromCertificates,
)
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from k3dreg.config.engine_address import EngineAddress, TlsMaterial
from k3dreg.docker.connection import Connection
from k3dreg.docker.endpoint import make_agent, make_pool
from k3dreg.docker.engine_tls import make_connection_creator
from k3dreg.oci.errors import EngineUnavailable, UsageError
from tests.fakes.certificates import Authority, Pair


class Greeter(Resource):
    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("Api-Version", "1.51")
        return b"OK"


class Plain(Protocol):
    """As Go's server answers what is no HTTP."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.transport.loseConnection()


class Tls(TestCase):
    def setUp(self) -> None:
        self.authority = Authority()
        self.mine = self.authority.sign("client")
        self.pool = make_pool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)

    async def listen(self, pair: Pair | None) -> int:
        """An engine that shows `pair`, and wants a certificate of the authority to be shown."""
        site = Site(Greeter()) if pair else Factory.forProtocol(Plain)
        endpoint: SSL4ServerEndpoint | TCP4ServerEndpoint
        if pair is None:
            endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        else:
            own = PrivateCertificate.loadPEM(pair.key + pair.certificate)
            trust = trustRootFromCertificates([Certificate.loadPEM(self.authority.certificate)])
            options = CertificateOptions(own.privateKey.original, own.original, trustRoot=trust)
            endpoint = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")
        port: IListeningPort = await endpoint.listen(site)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)  # type: ignore[attr-defined]

    async def greet(self, port: int, material: TlsMaterial, host: str = "127.0.0.1") -> tuple[int, int]:
        agent = make_agent(reactor, EngineAddress(host=host, port=port, tls=material), pool=self.pool)
        return await Connection(agent, reactor, base="http://engine", silence=10.0).api_version()

    async def refused(self, port: int, material: TlsMaterial) -> str:
        try:
            await self.greet(port, material)
        except EngineUnavailable as error:
            return str(error)
        raise AssertionError("it was not refused")

    def material(self, pair: Pair | None, authority: Authority | None = None) -> TlsMaterial:
        ca = (authority or self.authority).certificate
        return TlsMaterial(ca, pair.certificate, pair.key) if pair else TlsMaterial(ca)

    async def test_both_sides_show_certificates_and_talk(self) -> None:
        port = await self.listen(self.authority.sign("localhost", "127.0.0.1"))
        self.assertEqual(await self.greet(port, self.material(self.mine)), (1, 51))
        self.assertEqual(await self.greet(port, self.material(self.mine), "localhost"), (1, 51))

    async def test_an_engine_of_another_authority_is_refused(self) -> None:
        port = await self.listen(Authority("another").sign("127.0.0.1"))
        told = await self.refused(port, self.material(self.mine))
        self.assertIn("not signed by the authority in ca.pem", told)

    async def test_an_engine_with_the_authorities_of_this_machine_is_refused_when_they_do_not_know_it(self) -> None:
        port = await self.listen(self.authority.sign("127.0.0.1"))
        self.assertIn("not signed", await self.refused(port, TlsMaterial()))

    async def test_an_engine_by_another_name_is_refused(self) -> None:
        port = await self.listen(self.authority.sign("engine.example", "127.0.0.2"))
        self.assertIn("its certificate is for another name", await self.refused(port, self.material(self.mine)))

    async def test_a_certificate_that_has_expired_is_refused(self) -> None:
        port = await self.listen(self.authority.sign("127.0.0.1", begins=-3, ends=-2))
        self.assertIn("its certificate has expired", await self.refused(port, self.material(self.mine)))

    async def test_a_certificate_that_is_not_valid_yet_is_refused(self) -> None:
        port = await self.listen(self.authority.sign("127.0.0.1", begins=2, ends=3))
        self.assertIn("not valid yet", await self.refused(port, self.material(self.mine)))

    async def test_an_engine_that_does_not_take_our_certificate_says_so(self) -> None:
        port = await self.listen(self.authority.sign("127.0.0.1"))
        told = await self.refused(port, self.material(Authority("another").sign("client")))
        self.assertIn("it does not accept the certificate that k3dreg shows", told)
        self.assertIn("does not accept", await self.refused(port, self.material(None)))

    async def test_an_engine_without_tls_is_told_apart(self) -> None:
        port = await self.listen(None)
        self.assertIn("it does not speak TLS", await self.refused(port, self.material(self.mine)))

    async def test_a_socket_that_closes_at_once_is_not_about_certificates(self) -> None:
        class Closing(Factory):
            def buildProtocol(self, addr: object) -> None:
                return None

        port: IListeningPort = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Closing())
        self.addCleanup(port.stopListening)
        told = await self.refused(port.getHost().port, self.material(self.mine))  # type: ignore[attr-defined]
        self.assertIn("connection to Docker was lost", told)


class Material(SynchronousTestCase):
    def test_what_is_no_pem_is_a_usage_line(self) -> None:
        for material in (TlsMaterial(ca=b"rubbish"), TlsMaterial(certificate=b"rubbish", key=b"rubbish")):
            with self.assertRaises(UsageError) as caught:
                make_connection_creator("engine", material)
            self.assertIn("is not a PEM file", str(caught.exception))
