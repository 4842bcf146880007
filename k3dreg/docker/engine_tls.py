"""TLS to an engine: both sides show certificates, and a refusal says why."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from k3dreg.config.engine_address import TlsMaterial
from k3dreg.oci.errors import UsageError

# X509_verify_cert_error_string(3) in plain words, for those that people meet.
_REASONS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself, and not the one that ca.pem holds",
    19: "its certificate is not signed by the authority in ca.pem",
    20: "its certificate is not signed by the authority in ca.pem",
    21: "its certificate is not signed by the authority in ca.pem",
}
_BEGIN = b"-----BEGIN CERTIFICATE-----"


class CertificateRefused(ConnectionLost):
    """The engine's certificate is not one to be trusted; the text is the rest of "refused: ..."."""

    def __str__(self) -> str:
        return str(self.args[0])


@implementer(IOpenSSLClientConnectionCreator)
class _Telling:
    """Twisted's connections, with a verification that also says why it refuses: OpenSSL's own error only says that.

    A connection has one such callback, and newer Twisteds verify the name in theirs, so it is done here as well.
    """

    def __init__(self, creator: IOpenSSLClientConnectionCreator, host: str) -> None:
        self._creator = creator
        self._name = IPAddress_ID(host) if isIPAddress(host) or isIPv6Address(host) else DNS_ID(host)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        def verified(_connection: SSL.Connection, certificate: Any, number: int, depth: int, ok: int) -> bool:
            reason = "" if ok else _REASONS.get(number, f"its certificate does not verify (OpenSSL's error {number})")
            if ok and depth == 0:
                reason = self._wrong_name(certificate)
            if reason:
                tlsProtocol.failVerification(Failure(CertificateRefused(reason)))
            return not reason

        connection = self._creator.clientConnectionForTLS(tlsProtocol)
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verified)
        return connection

    def _wrong_name(self, certificate: Any) -> str:
        """OpenSSL swallows what is raised in its callbacks, so everything that goes wrong is a reason to refuse."""
        try:
            verify_service_identity(extract_patterns(certificate), [self._name], [])
        except VerificationError:
            return "its certificate is for another name"
        except Exception as error:  # noqa: BLE001
            return f"its certificate cannot be read: {type(error).__name__}"
        return ""


def make_connection_creator(host: str, material: TlsMaterial) -> IOpenSSLClientConnectionCreator:
    """TLS with the engine at `host`, which must show a certificate for that name or IP address.

    Raises `UsageError` when the PEM texts cannot be used.
    """
    try:
        trust = platformTrust()
        if material.ca:
            texts = [_BEGIN + part for part in material.ca.split(_BEGIN)[1:]]
            trust = trustRootFromCertificates([Certificate.loadPEM(text) for text in texts or [material.ca]])
        own = PrivateCertificate.loadPEM(material.key + b"\n" + material.certificate) if material.key else None
        return _Telling(optionsForClientTLS(host, trust, own), host)
    except (SSL.Error, crypto.Error, ValueError) as error:
        raise UsageError("ca.pem, cert.pem or key.pem is not a PEM file of a certificate or a key") from error


def explain_refusal(error: BaseException) -> str:
    """Why TLS failed, as the rest of "the TLS connection was refused: ..."; "" for what is not about TLS."""
    if isinstance(error, CertificateRefused):
        return str(error)
    if isinstance(error, VerificationError):
        return "its certificate is for another name"
    if isinstance(error, SSL.Error):
        words = " ".join(str(part) for entry in error.args[0] for part in entry) if error.args else ""
        if "alert" in words:
            return "it does not accept the certificate that k3dreg shows (cert.pem)"
        if "wrong version" in words or "record" in words:
            return "it does not speak TLS"
        return "the handshake failed"
    return ""
