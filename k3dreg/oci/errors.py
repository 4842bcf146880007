"""The classes of the errors that k3dreg raises.

The classes have no HTTP status: the table in `k3dreg.web.error_answers` maps each class to a status and an OCI error
code, and a test checks that no class is missing there.

Users see the text of an error in the log, in the OCI error JSON, and from there in a pod's events.  It must not contain
a secret or a path of this machine.
"""

from __future__ import annotations


class ExplainedError(Exception):
    """An error whose text is one sentence for the user; `advice` is what the user can do, or ""."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    @property
    def explained(self) -> str:
        """Return the sentence with the advice: `no engine at /run/docker.sock: connection refused. start Docker`."""
        return f"{self}. {self.advice}" if self.advice else str(self)


class K3dregError(ExplainedError):
    """The base class of the errors that clients may get, and of those that lead to them."""


# -- the request is wrong ---------------------------------------------------------------------


class BadRequest(K3dregError):
    """The request is none of the distribution-spec's, or a part of it does not parse."""


class InvalidName(BadRequest):
    """A repository name or registry host outside the spec's grammar."""


class InvalidReference(BadRequest):
    """A tag, or a tag-or-digest, outside the spec's grammar."""


class InvalidDigest(BadRequest):
    """A digest that does not parse, or names an algorithm other than sha256 and sha512."""


class InvalidManifest(BadRequest):
    """Bytes that are no manifest or index, or one that this registry does not accept."""


class UploadInvalid(BadRequest):
    """A request to an upload session that does not fit the session's state."""


class DigestNotMatched(BadRequest):
    """Pushed content does not hash to the digest that the client gave."""


class SizeNotMatched(BadRequest):
    """Pushed content is longer or shorter than the client said."""


class ManifestBlobUnknown(BadRequest):
    """A pushed manifest refers to content that is not here: clients must push that first."""


class TooLarge(BadRequest):
    """A body of more bytes than this registry accepts for such a request."""


class UploadOutOfOrder(K3dregError):
    """A chunk that does not begin where the upload session ends.

    `received` is the number of bytes that the session has.
    """

    def __init__(self, message: str, *, received: int) -> None:
        super().__init__(message)
        self.received = received


class TooManyUploads(K3dregError):
    """The limit of open upload sessions is reached."""


class LoginRequired(K3dregError):
    """k3dreg itself requires a user and a password, and the client sent none, or wrong ones.

    `challenge` is whether the answer asks the client for credentials.
    """

    def __init__(self, message: str, *, challenge: bool = True, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.challenge = challenge


class BrowserRefused(K3dregError):
    """A browser sent the request on behalf of a page that is not k3dreg's own."""


class RegistryNotAllowed(K3dregError):
    """A registry that a client names may not be asked for images (`--allow-registry`)."""


class NotOurs(K3dregError):
    """A push under the name of another registry: nodes would get the pushed content for that registry's images."""


class UnsupportedOperation(K3dregError):
    """A request with a method that the route does not have, or that is turned off."""


class RangeNotSatisfiable(K3dregError):
    """A byte range that lies outside the blob; `size` is the blob's size in bytes."""

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


# -- the content is not here --------------------------------------------------------------------


class NotFound(K3dregError):
    """Neither k3dreg nor Docker can provide the content: a node should ask its next host."""


class ManifestUnknown(NotFound):
    """There is no manifest by this reference."""


class NotAnImage(ManifestUnknown):
    """The reference names an artifact, or an image of a kind that this engine cannot hold: its registry has it."""


class BlobUnknown(NotFound):
    """There is no blob by this digest."""


class NameUnknown(NotFound):
    """There is no repository by this name."""


class RouteUnknown(NotFound):
    """A path that is none of the distribution-spec's."""


class UploadUnknown(NotFound):
    """There is no upload session by this ID."""


class ImageNotInEngine(NotFound):
    """The engine holds no image by this name or ID (its own 404)."""


class FileAbsent(NotFound):
    """The engine's host has no such file.  Sources convert it to an error about the image."""


# -- the image's registry refused, to the engine or to k3dreg -----------------------------------


class Refused(K3dregError):
    """The image's own registry refused a request, of the engine or of k3dreg itself.

    The text has the words of the engine or the registry.
    """


class AuthenticationRequired(Refused):
    """The registry requires credentials.  `challenge` is whether the answer asks the client for some."""

    def __init__(self, message: str, *, challenge: bool = True, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.challenge = challenge


class Denied(Refused):
    """The registry accepts the credentials, but they do not permit the request."""


def refusal_for_client(error: Refused, *, showed: bool) -> Refused:
    """Return the error that a client gets for a registry's refusal `error`: 401 with or without challenge, or 403.

    `showed` is whether the client sent credentials.  A client without credentials gets a challenge for any refusal:
    some registries (Google's) answer "denied" to anonymous clients, and a node sends a pod's credentials only after a
    challenge.  A client with credentials gets none: a node would send the same ones five times (docs/refusals.md).
    """
    if not showed:
        return AuthenticationRequired(str(error), advice=error.advice)
    if isinstance(error, AuthenticationRequired):
        return AuthenticationRequired(str(error), challenge=False, advice=error.advice)
    return error


class RateLimited(Refused):
    """The image's registry limits the number of pulls, and the limit is reached."""


class UpstreamFailed(Refused):
    """The image's registry could not be reached, or failed."""


class RedirectRefused(UpstreamFailed):
    """The image's registry redirects k3dreg to an address that k3dreg does not ask; a retry does not help."""


# -- the engine ---------------------------------------------------------------------------------


class EngineError(K3dregError):
    """The engine answered a request with an error, or with something that k3dreg does not understand.

    `status` is the HTTP status of its answer, 0 if the error was in a body, or there was no answer.
    """

    def __init__(self, message: str, *, status: int = 0, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.status = status


class EngineUnavailable(EngineError):
    """The engine cannot be reached, or the connection to it was lost."""


class EngineTooOld(EngineError):
    """The engine and k3dreg have no API version in common."""


class EngineSilent(EngineUnavailable):
    """The engine sent nothing for longer than the limit, so k3dreg closed the connection."""


class FilesUnreachable(EngineError):
    """The engine's files cannot be read in the way that was tried; another source must serve the content."""


# -- content ------------------------------------------------------------------------------------


class ContentError(K3dregError):
    """Content is not what its digest, descriptor or format says.  It is never served as complete."""


class DigestMismatch(ContentError):
    """Bytes do not hash to their digest, or their number is not their descriptor's size."""


class ArchiveError(ContentError):
    """A stream of `docker save` is no complete image archive; the text says what is wrong."""


class ImageIncomplete(ContentError):
    """The engine lacks blobs of an image, for a platform that it reports to hold."""


class ContentGone(ContentError):
    """Content disappeared before or while it was read: k3dreg evicted it, or the engine removed it."""


# -- k3dreg itself ------------------------------------------------------------------------------


class StoreError(K3dregError):
    """The state directory could not be read or written."""


class StoreFull(StoreError):
    """The disk of the state directory is full."""


class TooManyFiles(StoreError):
    """A file cannot be opened, as the limit of open files is reached: clients may try again in `after` seconds."""

    def __init__(self, message: str, *, after: float, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.after = after


class NotYet(K3dregError):
    """The work takes longer than the client waits, or must wait: clients may try again in `after` seconds."""

    def __init__(self, message: str, *, after: float) -> None:
        super().__init__(message)
        self.after = after


class TooManyViewers(K3dregError):
    """The limit of open status pages is reached: browsers may try again in `after` seconds."""

    def __init__(self, message: str, *, after: float) -> None:
        super().__init__(message)
        self.after = after


class UsageError(K3dregError):
    """A setting, or a file that it names, cannot be used."""


class StateInUse(UsageError):
    """Another process uses the state directory."""
