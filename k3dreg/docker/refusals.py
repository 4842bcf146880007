"""Why a pull by the engine failed: what its words mean.

The engine passes on what the image's registry said, with a status that is often its own 500, and in other words in
each image store and version.  So status and text are looked at, the text first.  The texts are those that engines
20.10 to 28.5 gave to a scripted registry (tests/unit/docker/test_refusals.py has them).
"""

from __future__ import annotations

import re

from k3dreg.docker.messages import one_line
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


# A word that may also be part of an image's name counts only where a clause of the error chain begins: `a: b: c`.
_CLAUSE = r"(?:^|: )"

# Docker 28's containerd store quotes a registry so: each error in a line of its own, often the same one twice.
_QUOTED = "error from registry: "
_RATE_LIMITED = _words(
    "429 Too Many Requests", _CLAUSE + "toomanyrequests", "pull rate limit", "HTTP 429 response body"
)
# No answer at all, or one that tells of a fault, also of the registry's token server: logging in is of no use then.
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
# `pull access denied` is said of private repositories and of absent ones; Docker Hub does not tell them apart.
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
# What the registry has is no image to this engine.  A layer has been verified when it is unpacked, so that an archive
# which ends too soon, or has no header, is none.  A connection that is cut reads otherwise.
_NO_ARCHIVE = r"(?:unexpected EOF|archive/tar: invalid tar header)"
_NOT_AN_IMAGE = _words(
    _CLAUSE + r"unsupported media type \S+/\S+$",
    "unsupported image-specific operation on artifact",
    "AI models are not yet supported",
    "invalid rootfs in image configuration",
    r"failed to register layer: (?:Error processing tar file\(exit status 1\): )?" + _NO_ARCHIVE,
    r"unpacking failed \(error: exit status 1; output: " + _NO_ARCHIVE,
)
# Any failure to connect, in the words of Go's net package.
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
# Trouble of the engine's own, with its disk or with unpacking: no other host or credential helps.
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
# The registry has the manifest and lacks what it lists: it is broken, the image is not unknown.
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
# `one_line` puts this in the place of a page.  What a page says is prose: only its title may be trusted a little.
_PAGE = re.compile(r"\(an HTML page.*")
_NOT_FOUND_PAGE = _words(r"\(an HTML page: 404\b", "HTTP 404 response body")

_TAKES_IMAGES_ONLY = (
    "this engine holds images only, and no artifacts: let k3dreg fetch it from its registry (--origin-fallback), or "
    'use Docker\'s containerd image store ("features": {"containerd-snapshotter": true} in daemon.json)'
)
_LOG_IN = "log in to the registry (docker login), or give the node credentials for it"


def is_connection_failure(message: str) -> bool:
    """Tell whether the engine could not connect to a registry, whatever the registry may be."""
    return _NO_CONNECTION.search(message) is not None


def is_unpacking_failure(message: str) -> bool:
    """Tell whether the engine has the content of an artifact, and can make no file system of it (Docker 26)."""
    return message.startswith("failed to unpack loaded image")


def refusal(status: int, message: str) -> K3dregError:
    """The error that a failed pull is.

    `status` is the HTTP status of the engine's answer, 0 for an error inside a progress stream; `message` its words,
    which become the error's text: one line, no HTML, no paths.
    """
    said = one_line(message)
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
