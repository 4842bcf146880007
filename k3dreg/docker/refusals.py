"""Find out from the engine's error message why a pull failed.

The engine passes on the error of the image's registry, often with a status 500 of its own, and with another wording in
each image store and version.  So `refusal` looks at text and status.  The patterns match the messages of engines 20.10
to 28.5 about a scripted registry, which are in tests/unit/docker/test_refusals.py.
"""

from __future__ import annotations

import re

from k3dreg.docker.messages import readable
from k3dreg.oci.errors import (
    AuthenticationRequired,
    Denied,
    EngineError,
    K3dregError,
    ManifestUnknown,
    NotAnImage,
    RateLimited,
    UpstreamFailed,
)


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# The beginning of a clause in Go's error chains, `a: b: c`.  A word that may be part of an image's name counts only
# there.
_CLAUSE = r"(?:^|: )"

# Docker 28's containerd store puts this before a registry's errors.  Each of them is a line, often there twice.
_QUOTED = "error from registry: "
_RATE_LIMITED = _words(
    "429 Too Many Requests", _CLAUSE + "toomanyrequests", "pull rate limit", "HTTP 429 response body"
)
# The registry, or its token server, does not answer or has failed.  This is looked for before 401, because Docker's
# message may contain both, and credentials do not help.
_UNREACHABLE = _words(
    r"\bdial tcp\b",
    "no such host",
    r"\bi/o timeout\b",
    "Client.Timeout exceeded",
    "context deadline exceeded",
    "TLS handshake timeout",
    r"\bx509: ",
    "connection reset by peer",
    r"unexpected status from \w+ request to \S+: 5\d\d ",
)
# `pull access denied` may mean a private repository or a missing one; Docker Hub does not distinguish them.
_UNAUTHORISED = _words(
    "pull access denied for ",
    _CLAUSE + "pull access denied",
    "no basic auth credentials",
    "401 Unauthorized",
    _CLAUSE + "authorization failed",
    _CLAUSE + "failed to authorize",
    _CLAUSE + r"unauthorized(?::|$)",
    _CLAUSE + "authentication required",
    "incorrect username or password",
    _QUOTED + r"unauthorized\b",
    "HTTP 401 response body",
)
_DENIED = _words(
    "403 Forbidden",
    _CLAUSE + r"denied(?::|$)",
    _QUOTED + r"denied\b",
    "access to the resource is denied",
    "HTTP 403 response body",
)
# The registry's content is not an image for this engine.  The engine verifies a layer before it unpacks it, so a layer
# that ends too soon, or has no tar header, is not a layer.  A lost connection has other messages.
_NO_ARCHIVE = r"(?:unexpected EOF|archive/tar: invalid tar header)"
_NOT_AN_IMAGE = _words(
    _CLAUSE + r"unsupported media type \S+/\S+$",
    "unsupported image-specific operation on artifact",
    "AI models are not yet supported",
    "invalid rootfs in image configuration",
    r"failed to register layer: (?:Error processing tar file\(exit status 1\): )?" + _NO_ARCHIVE,
    r"unpacking failed \(error: exit status 1; output: " + _NO_ARCHIVE,
)
# Failures to connect, as Go's net package words them.
_NO_CONNECTION = _words(
    r"dial (?:tcp|udp)",
    "i/o timeout",
    "deadline exceeded",
    "no such host",
    "no route to host",
    "unreachable",
    "proxyconnect",
    "connection refused",
    "connection reset",
)
# Failures of the engine itself, with its disk or with unpacking.  Neither another registry nor credentials help.
_OWN_TROUBLE = _words(
    "no space left on device",
    "disk quota exceeded",
    "read-only file system",
    "failed to register layer",
    "failed to extract layer",
    "failed to unpack",
    "failed to prepare extraction",
    _CLAUSE + "permission denied",
    "input/output error",
)
# The registry has the manifest and lacks a blob that it lists.  So the registry has failed; the image is not unknown.
_BROKEN_CONTENT = _words("unknown blob", "httpReadSeeker", "failed to copy", "failed commit on ref")
_UNKNOWN = _words(
    _CLAUSE + r"not found$",
    r"^manifest for \S+ not found",
    _CLAUSE + r"manifest unknown",
    _CLAUSE + r"name unknown",
    _CLAUSE + "no matching manifest",
    "invalid reference format",
    "repository name must not be more than 255 characters",
    "is a reserved name",
)
# `readable` replaces an HTML page by this.  Only a 404 in the page's title counts; the rest of a title may be any text.
_PAGE = re.compile(r"\(an HTML page.*")
_NOT_FOUND_PAGE = _words(r"\(an HTML page: 404\b", "HTTP 404 response body")

_TAKES_IMAGES_ONLY = (
    "this engine holds images only, and no artifacts: let k3dreg fetch it from its registry (--origin-fallback), or "
    'use Docker\'s containerd image store ("features": {"containerd-snapshotter": true} in daemon.json)'
)
_LOG_IN = "log in to the registry (docker login), or give the node credentials for it"


def is_connection_failure(message: str) -> bool:
    """Return whether the message says that the engine could not connect to a registry."""
    return _NO_CONNECTION.search(message) is not None


def is_unpacking_failure(message: str) -> bool:
    """Return whether the engine has stored the content and cannot unpack it, as that of an artifact (Docker 26)."""
    return message.startswith("failed to unpack loaded image")


def refusal(status: int, message: str) -> K3dregError:
    """Return the error for a failed pull.

    `status` is the HTTP status of the engine's answer, 0 for an error inside a progress stream.  `message` is the
    engine's message, which `readable` turns into the error's text.
    """
    said = readable(message)
    text = _PAGE.sub("", said).rstrip(": ")
    said = said or f"Docker could not pull the image and gave no reason (status {status})"

    if status == 429 or _RATE_LIMITED.search(text):
        return RateLimited(said, advice="wait, or log in to the registry for a higher limit")
    if _UNREACHABLE.search(text):
        return UpstreamFailed(said)
    if status == 401 or _UNAUTHORISED.search(text):
        return AuthenticationRequired(said, advice=_LOG_IN)
    if _NOT_AN_IMAGE.search(text):
        return NotAnImage(said, advice=_TAKES_IMAGES_ONLY)
    if _OWN_TROUBLE.search(text):
        return EngineError(said, status=status)
    if status == 403 and not _UNKNOWN.search(text):
        return Denied(said)
    if _DENIED.search(text):
        return Denied(said)
    if _BROKEN_CONTENT.search(text):
        return UpstreamFailed(said)
    if status == 404 or _UNKNOWN.search(text) or _NOT_FOUND_PAGE.search(said):
        return ManifestUnknown(said)
    return UpstreamFailed(said)
