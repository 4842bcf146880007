"""Credentials: as clients send them to a registry, and as Docker's engine takes them."""

from __future__ import annotations

import base64
import binascii
import json

from attrs import field, frozen

# The user name by which Docker's clients and credential helpers mark the secret as an identity token.
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  (a marker, not a secret)


@frozen
class BasicAuth:
    """A user name and password.  Its `repr` does not contain the password, so that no traceback shows it."""

    username: str
    password: str = field(repr=False)

    @classmethod
    def from_header(cls, value: str | None) -> BasicAuth | None:
        """Return the credentials in the value of an `Authorization` header (RFC 7617), or None.

        Also returns None for other schemes and for values that do not decode: a node that sends such a header is
        treated as anonymous, because an answer of 400 would end its pull.
        """
        scheme, _, encoded = (value or "").strip().partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return None
        username, colon, password = text.partition(":")
        return cls(username, password) if colon and username else None


@frozen
class Credentials:
    """Credentials for a registry: a user name and password, an identity token, or a registry token.

    Its `repr` does not contain the secrets, so that no log line shows those of a key in a table.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    # An OAuth2 refresh token for the registry's token server (Engine API, "Authentication").
    identity_token: str = field(default="", repr=False)
    # A bearer token for the registry itself.
    registry_token: str = field(default="", repr=False)

    @classmethod
    def login(cls, username: str, secret: str) -> Credentials:
        """Return credentials from a user or a credential helper; the user name `<token>` marks an identity token."""
        if username == _IDENTITY_TOKEN_USER:
            return cls(identity_token=secret)
        return cls(username, secret)

    @classmethod
    def of(cls, auth: BasicAuth) -> Credentials:
        """Return credentials from those that a client sent."""
        return cls.login(auth.username, auth.password)

    @property
    def is_empty(self) -> bool:
        """Return whether there is neither a token nor a user name with a password."""
        return not (self.identity_token or self.registry_token or (self.username and self.password))

    def to_header(self) -> str:
        """Return the value of an `Authorization` header with user name and password (RFC 7617); "" without a user."""
        if not self.username:
            return ""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


class RegistryAuth(str):
    """The value of an `X-Registry-Auth` header, whose `repr` does not contain it.

    It is part of the keys of pulls under way, and such keys appear in log lines.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<credentials>" if self else "''"


def registry_auth(auth: BasicAuth | Credentials, registry: str | None) -> RegistryAuth:
    """Return `auth` as the value of an `X-Registry-Auth` header for a pull by the engine.

    `registry`: the host of the image.  The containerd store uses the credentials only for this host; with None, for the
    host of the image that is pulled.

    Engine API, "Authentication": a JSON object as base64url *with* padding.  Without the padding the engine silently
    ignores it.
    """
    shown = Credentials.of(auth) if isinstance(auth, BasicAuth) else auth
    if shown.identity_token:
        document = {"identitytoken": shown.identity_token}
    elif shown.registry_token:
        document = {"registrytoken": shown.registry_token}
    else:
        document = {"username": shown.username, "password": shown.password}
    if registry is not None:
        document["serveraddress"] = registry
    return RegistryAuth(base64.urlsafe_b64encode(json.dumps(document).encode("utf-8")).decode("ascii"))
