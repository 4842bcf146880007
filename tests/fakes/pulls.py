"""The requests of clients that pull, as observers hear of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from attrs import evolve
from twisted.internet.task import Clock

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.activity import ContentRequest, LinkedLayers, RequestReport
from k3dreg.reporting.observer import IObserver

APP = Repository("registry.example", "team/app")
_IDS = count()


def layer(name: str, size: int = 1000) -> Descriptor:
    return Descriptor(media_types.OCI_LAYER, Digest.of(name.encode()), size)


class Image:
    """An image with layers of these names, for one platform, and in an index if it is for `several`."""

    def __init__(self, *layers: str, several: bool = False) -> None:
        name = ",".join(layers)
        self.config = layer(f"config of {name}", 10)
        self.layers = [layer(each) for each in layers]
        self.contents = Manifest(media_types.OCI_MANIFEST, self.config, tuple(self.layers))
        self.manifest = Descriptor(media_types.OCI_MANIFEST, Digest.of(name.encode()), 5)
        other = Descriptor(media_types.OCI_MANIFEST, Digest.of(f"other platform of {name}".encode()), 5)
        self.index = Descriptor(media_types.OCI_INDEX, Digest.of(f"index of {name}".encode()), 7) if several else None
        self.listed = Manifest(media_types.OCI_INDEX, manifests=(other, self.manifest))

    @property
    def root(self) -> Descriptor:
        return self.index or self.manifest


class Client:
    """A client at an address, whose requests `observer` hears of.  Each method sends one and gets its answer.

    `last` is its last report.
    """

    def __init__(
        self, observer: IObserver, clock: Clock, address: str = "10.0.0.1", repository: Repository = APP
    ) -> None:
        self.observer = observer
        self.clock = clock
        self.address = address
        self.repository = repository

    def begin(self, method: str, target: str, *, blob: bool = False, may_pull: bool = True) -> ContentRequest:
        reference = Reference.parse(self.repository, target)
        request = ContentRequest(
            f"{next(_IDS):016x}", self.address, method, reference, not blob, self.clock.seconds(), may_pull
        )
        self.observer.asked(request)
        return request

    def end(self, request: ContentRequest, status: int = 200, **more: Any) -> RequestReport:
        now = self.clock.seconds()
        route = "manifest" if request.is_manifest else "blob"
        report = RequestReport(
            request.id, now, request.client, request.method, route, str(request.reference), status, 0, 0.1, 0.1
        )
        report = evolve(report, source="content" if status < 400 else "")
        report = evolve(report, **more)
        self.observer.answered(report)
        return report

    def head(self, target: str, manifest: Descriptor, *, may_pull: bool = True) -> RequestReport:
        return self.end(self.begin("HEAD", target, may_pull=may_pull), manifest=manifest)

    def get(
        self,
        target: str,
        manifest: Descriptor,
        contents: Manifest | None,
        linked: LinkedLayers | None = None,
        **more: Any,
    ) -> RequestReport:
        sent: dict[str, Any] = {"manifest": manifest, "contents": contents, "linked": linked, "sent": manifest.size}
        return self.end(self.begin("GET", target), **{**sent, **more})

    def blob(self, blob: Descriptor, status: int = 200, **more: Any) -> RequestReport:
        sent: dict[str, Any] = {"sent": blob.size if status == 200 else 0}
        return self.end(self.begin("GET", str(blob.digest), blob=True), status, **{**sent, **more})

    def manifests(self, tag: str, image: Image, linked: LinkedLayers | None = None) -> None:
        """HEAD of the tag, GET of the index, if there is one, and of the platform's manifest: as containerd asks."""
        self.head(tag, image.root)
        if image.index is not None:
            self.get(str(image.index.digest), image.index, image.listed)
        self.get(str(image.manifest.digest), image.manifest, image.contents, linked)

    def pull(self, tag: str, image: Image, layers: Sequence[Descriptor] | None = None) -> None:
        """Pull all, or these layers only."""
        self.manifests(tag, image)
        for each in (image.config, *(image.layers if layers is None else layers)):
            self.clock.advance(0.5)
            self.blob(each)
