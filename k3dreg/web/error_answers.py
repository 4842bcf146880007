"""The one table from errors to HTTP: class -> (status, code of the OCI error JSON).

What a status makes a node do was read in containerd's source, and decides some of these:

- 404, 403, 401 without a scheme it knows, and 5xx: it asks its next host, at once.
- 429 and 408: it asks again at once, up to six times, without a pause.  So a counted pull is not answered by 429.
- 5xx beats 404 when it comes to what the user is told in the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from attrs import evolve

from k3dreg.oci import errors
from k3dreg.reporting.observer import CANCELLED
from k3dreg.web.answers import Answer

# How a fault counts that has no class of its own.
UNEXPECTED = "Unexpected"
# What a browser or `docker login` shows; nodes do not care.
REALM = "k3dreg"

# Codes are those of distribution-spec 1.1, "Error Codes", and where none fits those of the registry API it grew out of
# (UNKNOWN, UNAVAILABLE, RANGE_INVALID), which clients know too.
TABLE: Mapping[type[errors.K3dregError], tuple[int, str]] = {
    errors.K3dregError: (500, "UNKNOWN"),
    # The request is wrong.
    errors.BadRequest: (400, "UNSUPPORTED"),
    errors.InvalidName: (400, "NAME_INVALID"),
    # What no tag can be called is not there; the conformance tests of distribution-spec 1.1 ask for such a tag
    # (`.INVALID_MANIFEST_NAME`) and want 404.
    errors.InvalidReference: (404, "MANIFEST_UNKNOWN"),
    errors.InvalidDigest: (400, "DIGEST_INVALID"),
    errors.InvalidManifest: (400, "MANIFEST_INVALID"),
    errors.UploadInvalid: (400, "BLOB_UPLOAD_INVALID"),
    errors.DigestNotMatched: (400, "DIGEST_INVALID"),
    errors.SizeNotMatched: (400, "SIZE_INVALID"),
    errors.ManifestBlobUnknown: (400, "MANIFEST_BLOB_UNKNOWN"),
    errors.TooLarge: (413, "SIZE_INVALID"),
    errors.UploadOutOfOrder: (416, "BLOB_UPLOAD_INVALID"),
    errors.TooManyUploads: (429, "TOOMANYREQUESTS"),
    errors.LoginRequired: (401, "UNAUTHORIZED"),
    errors.BrowserRefused: (403, "DENIED"),
    errors.NotOurs: (403, "DENIED"),
    errors.RegistryNotAllowed: (403, "DENIED"),
    errors.UnsupportedOperation: (405, "UNSUPPORTED"),
    errors.RangeNotSatisfiable: (416, "RANGE_INVALID"),
    # Not here: a node asks its next host.
    errors.NotFound: (404, "MANIFEST_UNKNOWN"),
    errors.ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    errors.NotAnImage: (404, "MANIFEST_UNKNOWN"),
    errors.BlobUnknown: (404, "BLOB_UNKNOWN"),
    errors.NameUnknown: (404, "NAME_UNKNOWN"),
    errors.RouteUnknown: (404, "UNSUPPORTED"),
    errors.UploadUnknown: (404, "BLOB_UPLOAD_UNKNOWN"),
    errors.ImageNotInEngine: (404, "MANIFEST_UNKNOWN"),
    errors.FileAbsent: (404, "BLOB_UNKNOWN"),
    # The image's registry said no.
    errors.Refused: (502, "UNAVAILABLE"),
    errors.AuthenticationRequired: (401, "UNAUTHORIZED"),
    errors.Denied: (403, "DENIED"),
    errors.RateLimited: (503, "TOOMANYREQUESTS"),
    errors.UpstreamFailed: (502, "UNAVAILABLE"),
    errors.RedirectRefused: (502, "UNAVAILABLE"),
    # The engine.
    errors.EngineError: (502, "UNAVAILABLE"),
    errors.EngineUnavailable: (503, "UNAVAILABLE"),
    errors.EngineTooOld: (503, "UNAVAILABLE"),
    errors.EngineSilent: (504, "UNAVAILABLE"),
    errors.FilesUnreachable: (503, "UNAVAILABLE"),
    # Content that cannot be given as it was said to be: the fault is behind k3dreg.
    errors.ContentError: (502, "UNKNOWN"),
    errors.DigestMismatch: (502, "UNKNOWN"),
    errors.ArchiveError: (502, "UNKNOWN"),
    errors.ImageIncomplete: (404, "MANIFEST_UNKNOWN"),
    errors.ContentGone: (503, "UNAVAILABLE"),
    # k3dreg itself.
    errors.StoreError: (500, "UNKNOWN"),
    errors.StoreFull: (507, "UNAVAILABLE"),
    errors.TooManyFiles: (503, "UNAVAILABLE"),
    errors.NotYet: (503, "UNAVAILABLE"),
    errors.TooManyViewers: (503, "UNAVAILABLE"),
    errors.UsageError: (500, "UNKNOWN"),
}


def status_and_code(error: errors.K3dregError) -> tuple[int, str]:
    """From the table; a class that is not in it counts as its nearest ancestor that is."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def error_answer(error: errors.K3dregError) -> Answer:
    """The answer to a request that failed with `error`."""
    status, code = status_and_code(error)
    headers: list[tuple[str, str]] = []
    if isinstance(error, errors.AuthenticationRequired | errors.LoginRequired) and error.challenge:
        # RFC 7617.  Nodes send a pod's credentials only after this, so it is not sent when those have been refused: a
        # second challenge makes them repeat the same ones, five times.
        headers.append(("WWW-Authenticate", f'Basic realm="{REALM}", charset="UTF-8"'))
    elif isinstance(error, errors.NotYet | errors.TooManyViewers | errors.TooManyFiles):
        headers.append(("Retry-After", str(max(1, math.ceil(error.after)))))
    elif isinstance(error, errors.RangeNotSatisfiable):
        headers.append(("Content-Range", f"bytes */{error.size}"))
    return evolve(_answer(status, code, str(error), error.advice, headers), refusal=type(error).__name__)


def identified(answer: Answer, request_id: str) -> Answer:
    """The answer, with the ID of its request in the detail of an error: what a person sees leads to the log."""
    if not answer.refusal:
        return answer
    document = json.loads(answer.body)
    for error in document["errors"]:
        advice = {"advice": error["detail"]} if "detail" in error else {}
        error["detail"] = {**advice, "request_id": request_id}
    body = json.dumps(document).encode("ascii")
    return evolve(answer, body=body, length=len(body))


def method_not_allowed(allowed: list[str]) -> Answer:
    """405, naming the methods that the route does have (RFC 9110, 15.5.6)."""
    error = errors.UnsupportedOperation("this registry does not support that")
    status, code = status_and_code(error)
    answer = _answer(status, code, str(error), "", [("Allow", ", ".join(allowed))])
    return evolve(answer, refusal=type(error).__name__)


def unexpected_answer() -> Answer:
    """500, for what is an error in k3dreg.  It says nothing more: the log does."""
    answer = _answer(500, "UNKNOWN", "an error in k3dreg; its log has the details", "", [])
    return evolve(answer, refusal=UNEXPECTED)


def interrupted_answer() -> Answer:
    """503, when the work for a client that is still there was cancelled: k3dreg is shutting down."""
    answer = _answer(503, "UNAVAILABLE", "k3dreg cancelled this request; ask again", "", [])
    return evolve(answer, refusal=CANCELLED)


def _answer(status: int, code: str, message: str, advice: str, headers: list[tuple[str, str]]) -> Answer:
    """The error body of distribution-spec 1.1, "Error Codes".  Nodes show code and message in a pod's events."""
    error = {"code": code, "message": message} | ({"detail": advice} if advice else {})
    body = json.dumps({"errors": [error]}).encode("ascii")
    reason = f"{message} ({advice})" if advice else message
    return Answer(status, (("Content-Type", "application/json"), *headers), len(body), body, reason=reason)
