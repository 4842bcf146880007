"""TLS to an engine, with certificates of both sides, and with errors that say why a certificate was refused."""

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

# The error codes of X509_STORE_CTX_get_error(3) that users meet, in plain words.
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
    """The engine's certificate is not trusted.  The text is the reason, which completes "refused: ..."."""

    def __str__(self) -> str:
        return str(self.args[0])


@implementer(IOpenSSLClientConnectionCreator)
class _Telling:
    """Makes Twisted's TLS connections report why verification failed; OpenSSL's error only says that it failed.

    An OpenSSL connection has only one callback for verification.  Newer versions of Twisted verify the host's name in
    theirs, which this one replaces, so it verifies the name, too.
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
        """Return why the certificate is not for this host; "" if it is.

        Any exception is such a reason, because OpenSSL's bindings discard what a callback raises.
        """
        try:
            verify_service_identity(extract_patterns(certificate), [self._name], [])
        except VerificationError:
            return "its certificate is for another name"
        except Exception as error:  # noqa: BLE001
            return f"its certificate cannot be read: {type(error).__name__}"
        return ""


def make_connection_creator(host: str, material: TlsMaterial) -> IOpenSSLClientConnectionCreator:
    """Return what makes TLS connections to the engine at `host`, for `wrapClientTLS`.

    The engine must show a certificate for that name or IP address.  Raises `UsageError` when the PEM texts of
    `material` cannot be used.
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
    """Return why TLS failed, to complete "the TLS connection to Docker failed: ..."; "" if `error` is not about TLS."""
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
