"""The table from errors to HTTP: class -> (status, code of the OCI error JSON).

Some statuses are chosen by what they make a node do, according to containerd's source:

- On 404, 403, 401 without a known scheme, and 5xx it asks its next host at once.
- On 429 and 408 it repeats the request at once, up to six times.  So when Docker Hub's limit of pulls is reached the
  answer is not 429: each repetition could count as a pull.
- The error that the user sees in the end is a 5xx of one host rather than a 404 of another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from attrs import evolve

from k3dreg.oci import errors
from k3dreg.reporting.observer import CANCELLED
from k3dreg.web.answers import Answer

# The `refusal` of an answer to an exception that is not a `K3dregError`.
UNEXPECTED = "Unexpected"
# Browsers and `docker login` show it; nodes ignore it.
REALM = "k3dreg"

# Codes are those of distribution-spec 1.1, "Error Codes".  Where none fits, they are those of Docker's registry API
# (UNKNOWN, UNAVAILABLE, RANGE_INVALID), from which that specification was made; clients know these, too.
TABLE: Mapping[type[errors.K3dregError], tuple[int, str]] = {
    errors.K3dregError: (500, "UNKNOWN"),
    # The request is wrong.
    errors.BadRequest: (400, "UNSUPPORTED"),
    errors.InvalidName: (400, "NAME_INVALID"),
    # The conformance tests of distribution-spec 1.1 request an invalid tag (`.INVALID_MANIFEST_NAME`) and expect 404.
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
    # The content is not here: a node asks its next host.
    errors.NotFound: (404, "MANIFEST_UNKNOWN"),
    errors.ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    errors.NotAnImage: (404, "MANIFEST_UNKNOWN"),
    errors.BlobUnknown: (404, "BLOB_UNKNOWN"),
    errors.NameUnknown: (404, "NAME_UNKNOWN"),
    errors.RouteUnknown: (404, "UNSUPPORTED"),
    errors.UploadUnknown: (404, "BLOB_UPLOAD_UNKNOWN"),
    errors.ImageNotInEngine: (404, "MANIFEST_UNKNOWN"),
    errors.FileAbsent: (404, "BLOB_UNKNOWN"),
    # The image's registry refused the request, or failed.
    errors.Refused: (502, "UNAVAILABLE"),
    errors.AuthenticationRequired: (401, "UNAUTHORIZED"),
    errors.Denied: (403, "DENIED"),
    errors.RateLimited: (503, "TOOMANYREQUESTS"),
    errors.UpstreamFailed: (502, "UNAVAILABLE"),
    errors.RedirectRefused: (502, "UNAVAILABLE"),
    # The engine failed.
    errors.EngineError: (502, "UNAVAILABLE"),
    errors.EngineUnavailable: (503, "UNAVAILABLE"),
    errors.EngineTooOld: (503, "UNAVAILABLE"),
    errors.EngineSilent: (504, "UNAVAILABLE"),
    errors.FilesUnreachable: (503, "UNAVAILABLE"),
    # The engine or a registry gave wrong or incomplete content.
    errors.ContentError: (502, "UNKNOWN"),
    errors.DigestMismatch: (502, "UNKNOWN"),
    errors.ArchiveError: (502, "UNKNOWN"),
    errors.ImageIncomplete: (404, "MANIFEST_UNKNOWN"),
    errors.ContentGone: (503, "UNAVAILABLE"),
    # k3dreg itself failed, or is at a limit.
    errors.StoreError: (500, "UNKNOWN"),
    errors.StoreFull: (507, "UNAVAILABLE"),
    errors.TooManyFiles: (503, "UNAVAILABLE"),
    errors.NotYet: (503, "UNAVAILABLE"),
    errors.TooManyViewers: (503, "UNAVAILABLE"),
    errors.UsageError: (500, "UNKNOWN"),
    errors.StateInUse: (500, "UNKNOWN"),
}


def status_and_code(error: errors.K3dregError) -> tuple[int, str]:
    """Return the entry of `TABLE` for the error's class, or for its nearest ancestor that has one."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def error_answer(error: errors.K3dregError) -> Answer:
    """Return the answer to a request that failed with `error`."""
    status, code = status_and_code(error)
    headers: list[tuple[str, str]] = []
    if isinstance(error, errors.AuthenticationRequired | errors.LoginRequired) and error.challenge:
        # RFC 7617.  Nodes send a pod's credentials only after a challenge.  `challenge` is False when those were
        # refused: a second challenge would make nodes send the same ones again, five times.
        headers.append(("WWW-Authenticate", f'Basic realm="{REALM}", charset="UTF-8"'))
    elif isinstance(error, errors.NotYet | errors.TooManyViewers | errors.TooManyFiles):
        headers.append(("Retry-After", str(max(1, math.ceil(error.after)))))
    elif isinstance(error, errors.RangeNotSatisfiable):
        headers.append(("Content-Range", f"bytes */{error.size}"))
    return evolve(_answer(status, code, str(error), error.advice, headers), refusal=type(error).__name__)


def identified(answer: Answer, request_id: str) -> Answer:
    """Return the answer; if it is an error, with the request's ID in its detail, by which users search the log."""
    if not answer.refusal:
        return answer
    document = json.loads(answer.body)
    for error in document["errors"]:
        advice = {"advice": error["detail"]} if "detail" in error else {}
        error["detail"] = {**advice, "request_id": request_id}
    body = json.dumps(document).encode("ascii")
    return evolve(answer, body=body, length=len(body))


def method_not_allowed(allowed: list[str]) -> Answer:
    """Return a 405 that lists the methods of the route (RFC 9110, 15.5.6)."""
    error = errors.UnsupportedOperation("this registry does not support that")
    status, code = status_and_code(error)
    answer = _answer(status, code, str(error), "", [("Allow", ", ".join(allowed))])
    return evolve(answer, refusal=type(error).__name__)


def unexpected_answer() -> Answer:
    """Return a 500 for an error in k3dreg, without its cause, which is for the log only."""
    answer = _answer(500, "UNKNOWN", "an error in k3dreg; its log has the details", "", [])
    return evolve(answer, refusal=UNEXPECTED)


def interrupted_answer() -> Answer:
    """Return a 503 for a request that was cancelled while its client waits, as k3dreg shuts down."""
    answer = _answer(503, "UNAVAILABLE", "k3dreg cancelled this request; ask again", "", [])
    return evolve(answer, refusal=CANCELLED)


def _answer(status: int, code: str, message: str, advice: str, headers: list[tuple[str, str]]) -> Answer:
    """Return an error in the form of distribution-spec 1.1, "Error Codes".

    Nodes show the code and message in a pod's events.
    """
    error = {"code": code, "message": message} | ({"detail": advice} if advice else {})
    body = json.dumps({"errors": [error]}).encode("ascii")
    reason = f"{message} ({advice})" if advice else message
    return Answer(status, (("Content-Type", "application/json"), *headers), len(body), body, reason=reason)
