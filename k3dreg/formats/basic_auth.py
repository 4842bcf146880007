"""Credentials as values: how a client sends them, and how Docker's engine takes them."""

from __future__ import annotations

import base64
import binascii
import json

from attrs import field, frozen

# What Docker's clients and credential helpers put in place of a user name when the secret is an identity token.
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  (a marker, not a secret)


@frozen
class BasicAuth:
    """A user name and password.  Its `repr` never shows the password, so it may end up in a traceback."""

    username: str
    password: str = field(repr=False)

    @classmethod
    def from_header(cls, value: str | None) -> BasicAuth | None:
        """The credentials in the value of an `Authorization` header (RFC 7617), or None.

        None also for other schemes and for what does not decode: a node that sends such a header is better
        served as one without credentials than turned away with a 400.
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
    """What a registry is shown: a user name and password, an identity token, or a registry token.

    The secrets are not in its `repr`, so it may be a key in a table whose keys end up in a log line.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    # An OAuth2 refresh token for the registry's token server (Engine API, "Authentication").
    identity_token: str = field(default="", repr=False)
    # A bearer token for the registry itself.
    registry_token: str = field(default="", repr=False)

    @classmethod
    def login(cls, username: str, secret: str) -> Credentials:
        """From what a person or a credential helper gives: the user `<token>` marks an identity token."""
        if username == _IDENTITY_TOKEN_USER:
            return cls(identity_token=secret)
        return cls(username, secret)

    @classmethod
    def of(cls, auth: BasicAuth) -> Credentials:
        """From what a client sent."""
        return cls.login(auth.username, auth.password)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it that could be shown to a registry."""
        return not (self.identity_token or self.registry_token or (self.username and self.password))

    def to_header(self) -> str:
        """The value of an `Authorization` header with the user name and password (RFC 7617); "" where there is none."""
        if not self.username:
            return ""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


class RegistryAuth(str):
    """The value of an `X-Registry-Auth` header: text whose `repr` does not show it.

    It is what pulls are told apart by, and a table's keys end up in log lines.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<credentials>" if self else "''"


def registry_auth(auth: BasicAuth | Credentials, registry: str | None) -> RegistryAuth:
    """`auth` as the value of `X-Registry-Auth`, which is what a pull by the engine takes.

    `registry` is the host of the image that is pulled: the containerd store uses the credentials only if it is
    the same; None leaves it out, and they are for the image's own host.

    Engine API, "Authentication": base64url *with* padding, of a JSON object.  Without the padding the engine
    ignores it in silence.
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
