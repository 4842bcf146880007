"""Values for observers: the work under way, and reports of requests that have ended."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference


@frozen
class Progress:
    """The progress of some work, in bytes.  `total` is 0 if it is not known, and `done` may exceed it."""

    done: int = 0
    total: int = 0


def _nothing() -> Progress:
    return Progress()


def _no_waiters() -> int:
    return 0


@frozen
class LinkedLayers:
    """What linking did for one image and node (`--link-layers`).

    `layers` is the number of layers that were linked, and `there` of those that the node had.  Both together are the
    lowest ones of the image.  `saved` is the size in bytes of the linked layers on the disk.
    """

    node: str
    layers: int = 0
    there: int = 0
    saved: int = 0


@define(eq=False)
class Activity:
    """A piece of work that takes a while.  The same object stands for it from its beginning to its end.

    `kind` is one of `KINDS`; `subject` names the image or request for the user; `began` is in seconds since the epoch.
    Observers call `progress`, and `waiters` for the number of requests that wait for the work's end.  `linked` is set
    before the end of a linking that succeeded.
    """

    kind: str
    subject: str
    began: float
    progress: Callable[[], Progress] = _nothing
    waiters: Callable[[], int] = _no_waiters
    request_id: str = ""
    linked: LinkedLayers | None = None


KINDS = ("pull", "export", "transfer", "link")


@frozen
class ContentRequest:
    """A client's request for a manifest or a blob, which begins.

    `id` is that of the request's `RequestReport`, and `request_id` of the `Activity` that sends the body.  `reference`
    has the digest of a blob, and the tag or digest of a manifest.  `at` is in seconds since the epoch.  `may_pull` is
    False if the client may be a push tool, or an engine that pulls because this daemon requested it.
    """

    id: str
    client: str
    method: str
    reference: Reference
    is_manifest: bool
    at: float
    may_pull: bool = True


@frozen
class RequestReport:
    """A request that has ended.

    `at` is when it ended, in seconds since the epoch.  `seconds` is how long it took, and `head_seconds` how long until
    its status and headers were written.  `sent` is the number of bytes of the body that were sent.  `route` is one of a
    fixed list of words; `source` and `steps` are those of the request's `Trace`.  `refusal` is the class name of the
    error that the answer reported or broke off with, "" for none; `reason` says why in a sentence.  `trace_id` is the
    client's (W3C Trace Context), or "".  `manifest` is the manifest in the answer, None for other requests; `contents`
    is what it lists, if it was sent and is not too large.  `linked` and `not_linked` are as in the request's `Trace`.
    """

    id: str
    at: float
    client: str
    method: str
    route: str
    subject: str
    status: int
    sent: int
    seconds: float
    head_seconds: float
    source: str = ""
    steps: tuple[str, ...] = ()
    reason: str = ""
    refusal: str = ""
    aborted: bool = False
    quiet: bool = False
    trace_id: str = ""
    manifest: Descriptor | None = None
    contents: Manifest | None = None
    linked: LinkedLayers | None = None
    not_linked: str = ""
