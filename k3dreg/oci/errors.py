"""Everything that can go wrong, as one small tree.

No class here knows an HTTP status: `k3dreg.web.error_answers` holds the one table that maps a class to
(status, OCI error code), and a test walks this tree to see that none is missing from it.

The text of an error is shown to people: in the log, in the OCI error JSON and from there in a
pod's events.  It must never hold a secret or a path of this machine.
"""

from __future__ import annotations


class K3dregError(Exception):
    """The root of every error that k3dreg raises on purpose.

    `str(error)` is one sentence for a person; `advice` is what that person can do, or "".
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


# -- the request is wrong ---------------------------------------------------------------------


class BadRequest(K3dregError):
    """The request is not one the distribution-spec knows, or a part of it does not parse."""


class InvalidName(BadRequest):
    """A repository name or registry host outside the spec's grammar."""


class InvalidReference(BadRequest):
    """A tag, or a tag-or-digest, outside the spec's grammar."""


class InvalidDigest(BadRequest):
    """A digest that does not parse, or names an algorithm other than sha256 and sha512."""


class InvalidManifest(BadRequest):
    """Bytes that are not a manifest or index this registry understands."""


class UploadInvalid(BadRequest):
    """A request to an upload session that does not fit it."""


class DigestNotMatched(BadRequest):
    """What a client pushed does not hash to the digest it gave."""


class SizeNotMatched(BadRequest):
    """What a client pushed is not as long as it said."""


class ManifestBlobUnknown(BadRequest):
    """A pushed manifest refers to content that is not here: its parts are to be pushed first."""


class TooLarge(BadRequest):
    """A body of more bytes than this registry takes for such a request."""


class UploadOutOfOrder(K3dregError):
    """A chunk that does not begin where the upload session ends; `received` is how many bytes it has.

    `location` is where the session goes on, for the answer.
    """

    def __init__(self, message: str, *, received: int, location: str = "") -> None:
        super().__init__(message)
        self.received = received
        self.location = location


class TooManyUploads(K3dregError):
    """As many upload sessions are open as are allowed."""


class LoginRequired(K3dregError):
    """k3dreg itself wants a user and a password, and was shown none that it knows.

    `challenge`: whether asking the client for some makes sense.
    """

    def __init__(self, message: str, *, challenge: bool = True, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.challenge = challenge


class BrowserRefused(K3dregError):
    """A browser sent the request on behalf of a page that is not k3dreg's own."""


class RegistryNotAllowed(K3dregError):
    """A registry that a client names may not be asked for images (`--allow-registry`)."""


class NotOurs(K3dregError):
    """A push under the name of another registry, whose images nodes would then be given it for."""


class UnsupportedOperation(K3dregError):
    """A route that exists, asked for with a method it does not have."""


class RangeNotSatisfiable(K3dregError):
    """A byte range that lies outside the blob; `size` is the blob's size in bytes."""

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


# -- what was asked for is not here -------------------------------------------------------------


class NotFound(K3dregError):
    """Neither k3dreg nor Docker can provide it: a node should ask its next host."""


class ManifestUnknown(NotFound):
    """No manifest by this reference."""


class NotAnImage(ManifestUnknown):
    """An artifact, or an image of a kind that this engine cannot hold: its registry has it."""


class BlobUnknown(NotFound):
    """No blob by this digest."""


class NameUnknown(NotFound):
    """No repository by this name."""


class RouteUnknown(NotFound):
    """A path that is none of the distribution-spec's."""


class UploadUnknown(NotFound):
    """No upload session by this identifier."""


class ImageNotInEngine(NotFound):
    """The engine holds no image by this name or ID (its own 404)."""


class FileAbsent(NotFound):
    """The engine's host has no such file.  Sources turn it into what it means for an image."""


# -- the image's registry said no, through the engine -------------------------------------------


class Refused(K3dregError):
    """The image's own registry refused what the engine asked of it; the text is Docker's own words."""


class AuthenticationRequired(Refused):
    """Credentials are needed.  `challenge`: whether asking the client for some makes sense."""

    def __init__(self, message: str, *, challenge: bool = True, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.challenge = challenge


class Denied(Refused):
    """Credentials were understood and are not enough."""


def refusal_for_client(error: Refused, *, showed: bool) -> Refused:
    """Return the refusal that a client gets for `error`, for want of access: 401 or 403 depends on it.

    `showed` is whether the client sent credentials.  A client without is asked for some, whatever the registry calls
    its refusal: some (Google's) say "denied" to anonymous clients, and a node sends a pod's credentials only when it is
    asked.  A client with credentials is not asked: a node would send the same ones five times (docs/refusals.md).
    """
    if not showed:
        return AuthenticationRequired(str(error), advice=error.advice)
    if isinstance(error, AuthenticationRequired):
        return AuthenticationRequired(str(error), challenge=False, advice=error.advice)
    return error


class RateLimited(Refused):
    """The image's registry counts pulls and this one was too many."""


class UpstreamFailed(Refused):
    """The image's registry could not be reached, or failed."""


class RedirectRefused(UpstreamFailed):
    """The image's registry sent us to a place where we do not go; asking it again does not help."""


# -- the engine ---------------------------------------------------------------------------------


class EngineError(K3dregError):
    """The engine answered in a way that is no answer to the question.

    `status` is the HTTP status of its answer, 0 when the error came inside a body.
    """

    def __init__(self, message: str, *, status: int = 0, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.status = status


class EngineUnavailable(EngineError):
    """The engine cannot be reached, or the connection to it was lost."""


class EngineTooOld(EngineError):
    """The engine and k3dreg have no API version in common."""


class EngineSilent(EngineUnavailable):
    """The engine sent nothing for longer than the limit; what was under way has been given up."""


class FilesUnreachable(EngineError):
    """The engine's files cannot be read from here in the way that was tried; another source has to serve."""


# -- content ------------------------------------------------------------------------------------


class ContentError(K3dregError):
    """Bytes are not what they were said to be.  They are never served as whole."""


class DigestMismatch(ContentError):
    """Bytes do not hash to the digest, or are not as many, as was said."""


class ArchiveError(ContentError):
    """A stream of `docker save` is not a whole image archive; the text says where it broke."""


class ImageIncomplete(ContentError):
    """The engine's export of an image lacks blobs of a platform that it claims to hold."""


class ContentGone(ContentError):
    """A blob went away while it was read (evicted, or collected by the engine)."""


# -- k3dreg itself ------------------------------------------------------------------------------


class StoreError(K3dregError):
    """The state directory could not be read or written."""


class StoreFull(StoreError):
    """No room is left on the disk of the state directory."""


class TooManyFiles(StoreError):
    """A file cannot be opened, because k3dreg has as many open as it may have: ask again in `after` seconds."""

    def __init__(self, message: str, *, after: float, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.after = after


class NotYet(K3dregError):
    """The work goes on, but longer than a client waits: ask again in `after` seconds."""

    def __init__(self, message: str, *, after: float) -> None:
        super().__init__(message)
        self.after = after


class TooManyViewers(K3dregError):
    """As many status pages as k3dreg keeps up to date are open already: ask again in `after` seconds."""

    def __init__(self, message: str, *, after: float) -> None:
        super().__init__(message)
        self.after = after


class UsageError(K3dregError):
    """A setting that cannot be used; the text is a usage line."""
