"""One pull of an image by one client, put together from its requests.

A node asks by HEAD what a tag means, gets the index if there is one, the manifest, the config, and the layers that it
lacks (containerd, `core/remotes/docker`).  It leaves out what it has: a node that has everything sends the HEAD only.
It repeats requests that failed.  When another registry had to tell it what the tag means, it still asks here for
everything by digest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, evolve

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.manifest import Manifest
from k3dreg.reporting.activity import ContentRequest, Progress, RequestReport
from k3dreg.status.overview import SeenPull
from k3dreg.web.request_log import CLIENT_GONE

# Requests of a pull that are kept: those of an image of 90 layers, which few images have.
_REQUESTS = 100
# Blobs and manifests of a pull that are told apart.  Docker builds images of 127 layers at most.
_PARTS = 1000
# Statuses of answers with content, of which the client may not have read all.
_WITH_CONTENT = (200, 206, CLIENT_GONE)


def _nothing() -> Progress:
    return Progress()


@define(eq=False)
class UnderWay:
    """A request of a pull that has not ended; `progress` is that of its body."""

    request: ContentRequest
    progress: Callable[[], Progress] = _nothing


class Pull:
    """A pull that is under way, or may go on."""

    def __init__(self, number: int, first: ContentRequest) -> None:
        """`first` is its first request, which is also passed to `begin`.  `number` tells pulls apart."""
        self.number = number
        self.client = first.client
        self.image = first.reference
        self.node = ""
        self.under_way: dict[str, UnderWay] = {}
        self.last = self._began = first.at
        self._requests: deque[RequestReport] = deque(maxlen=_REQUESTS)
        self._ended = 0
        self._asked: set[tuple[str, str]] = set()  # methods and targets of requests that have not failed
        self._manifests: set[Digest] = set()  # those that the client learned of
        self.given_by = ""  # the ID of the request by which it first got a manifest
        self._unlisted = False  # whether it got one whose contents are not known
        self._index = False  # whether it got nothing but an index yet
        self._blobs: dict[Digest, Descriptor] = {}  # what the manifests that it got list
        self._layers: list[Digest] = []  # of these manifests, each with its lowest layer first
        self._covered: set[Digest] = set()  # layers that were linked, or that linking found in the node
        self._linked = self._saved = 0
        self._bytes: dict[Digest, int] = {}  # sent of each blob
        self._whole: set[Digest] = set()  # blobs that were sent to the last byte
        self._sent_bytes = 0
        self._failures: dict[str, RequestReport] = {}  # by target, the last one
        self._not_linked = ""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left that the client could ask for."""
        if self.under_way or not self.given_by or self._index or self._unlisted or self._failures:
            return False
        return self._whole.issuperset(self._blobs.keys() - self._covered)

    def has_part(self, request: ContentRequest) -> bool:
        """Return whether the request is for something that belongs to the image for certain."""
        target = request.reference.target
        return target == self.image.target or target in self._manifests or target in self._blobs

    def may_have_part(self, request: ContentRequest) -> bool:
        """Return whether the request may be for a part of the image, of which not all parts are known."""
        if not isinstance(request.reference.target, Digest) or (request.is_manifest and request.method == "HEAD"):
            return False
        has_room = len(self._asked) + len(self._failures) < _PARTS
        return has_room and (self._unlisted or not self.given_by)

    def has_asked(self, request: ContentRequest) -> bool:
        """Return whether the pull has the same request already, under way or answered."""
        return (request.method, str(request.reference.target)) in self._asked

    def begin(self, request: ContentRequest) -> None:
        """Add a request that begins."""
        self.under_way[request.id] = UnderWay(request)
        self._asked.add((request.method, str(request.reference.target)))

    def end(self, report: RequestReport) -> None:
        """Add what is known of a request, after `begin`, when it has ended."""
        request = self.under_way.pop(report.id).request
        self.last = max(self.last, report.at)
        self._requests.append(evolve(report, contents=None))
        self._ended += 1
        self._not_linked = report.not_linked or self._not_linked
        target = str(request.reference.target)
        if request.method == "GET" and report.status in _WITH_CONTENT:
            self._sent_bytes += report.sent
        if report.aborted or report.status >= 400:
            self._failures[target] = report
            self._asked.discard((request.method, target))
            self._count(request, report)
            return
        self._failures.pop(target, None)
        if request.is_manifest:
            self._manifest(request, report)
        else:
            self._count(request, report)

    def seen(self, now: float, fetched: Progress) -> SeenPull:
        """Return the pull as it is at `now`, while it goes on.

        `fetched` is the progress of the engine's pull of the image.
        """
        return evolve(self.over(), seconds=max(0.0, now - self._began), there=0, progress=self._progress(fetched))

    def over(self) -> SeenPull:
        """Return what the pull came to, if the client asks for nothing more."""
        failure = list(self._failures.values())[-1] if self._failures else None
        layers = [each for each in self._layers if each not in self._covered]
        sent = sum(each in self._whole for each in layers) if self._layers else len(self._whole)
        there = 0 if failure else max(0, len(self._layers) - self._linked - sent)
        return SeenPull(
            number=self.number,
            image=str(self.image),
            client=self.client,
            node=self.node,
            at=self._began,
            seconds=max(0.0, self.last - self._began),
            linked=self._linked,
            sent=sent,
            there=there,
            whole=not self._unlisted and bool(self._layers),
            sent_bytes=self._sent_bytes,
            saved=self._saved,
            status=failure.status if failure else 0,
            reason=failure.reason if failure else "",
            not_linked="" if self._linked else self._not_linked,
            requests=tuple(self._requests),
            more_requests=self._ended - len(self._requests),
            waiting=tuple(f"{each.request.method} {each.request.reference}" for each in self.under_way.values()),
        )

    def _manifest(self, request: ContentRequest, report: RequestReport) -> None:
        manifest = report.manifest
        if manifest is None:
            return
        self._manifests.add(manifest.digest)
        if request.method != "GET" or report.status not in _WITH_CONTENT:  # 304: the client has it
            return
        self.given_by = self.given_by or report.id
        # After a manifest was sent, earlier failures to get one no longer count.
        self._failures = {target: each for target, each in self._failures.items() if each.route != "manifest"}
        contents = report.contents
        if contents is None or sum(1 for _ in contents.children()) > _PARTS - len(self._blobs):
            self._unlisted = True
            return
        self._index = contents.is_index and not self._blobs
        self._manifests.update(child.digest for child in contents.manifests)
        if not contents.is_index:
            self._image(contents, report)

    def _image(self, contents: Manifest, report: RequestReport) -> None:
        self._blobs.update({each.digest: each for each in contents.children()})
        self._layers += [each.digest for each in contents.layers]
        if report.linked is not None:
            self._linked += report.linked.layers
            self._saved += report.linked.saved
            covered = contents.layers[: report.linked.layers + report.linked.there]
            self._covered.update(each.digest for each in covered)

    def _count(self, request: ContentRequest, report: RequestReport) -> None:
        """Count the bytes of a blob that were sent."""
        digest = request.reference.target
        if request.is_manifest or request.method != "GET" or not isinstance(digest, Digest):
            return
        if report.status not in _WITH_CONTENT:
            return
        self._bytes[digest] = self._bytes.get(digest, 0) + report.sent
        listed = self._blobs.get(digest)
        all_of_it = report.status == 200 and not report.aborted
        if all_of_it or (listed is not None and self._bytes[digest] >= listed.size):
            self._whole.add(digest)
            self._failures.pop(str(digest), None)

    def _progress(self, fetched: Progress) -> Progress:
        """Return how far the transfer of what the client lacks is; before it, how far the engine's pull is."""
        if not self.given_by:
            return fetched
        under_way: dict[Digest, int] = {}
        for each in self.under_way.values():
            digest = each.request.reference.target
            if isinstance(digest, Digest):
                under_way[digest] = under_way.get(digest, 0) + each.progress().done
        # A node fetches all layers from the lowest one that it lacks on (containerd, `core/unpack/unpacker.go`).
        asked = [at for at, layer in enumerate(self._layers) if ("GET", str(layer)) in self._asked]
        there = {*self._layers[: min(asked, default=0)], *self._covered}
        total = sum(each.size for each in self._blobs.values())
        done = sum(
            each.size
            if digest in there or digest in self._whole
            else min(each.size, self._bytes.get(digest, 0) + under_way.get(digest, 0))
            for digest, each in self._blobs.items()
        )
        return Progress(done, total)
