"""The trace of one request, which use cases and sources fill in, and which becomes one log line."""

from __future__ import annotations

from attrs import define, field

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.manifest import Manifest
from k3dreg.reporting.activity import LinkedLayers


@define
class Trace:
    """What was done for a request.

    Use cases and sources add to it; the web package logs it.  `source` is where the bytes came from, in a word or two
    ("cache", "export", "pushed").  `steps` are what had to happen first ("pull 12.1s", "export 3.0s").  `reason` is why
    the request failed, in one sentence.

    `circular`: the client is an engine that pulls because this daemon requested the pull.  `may_decide_a_push`: the
    client may be a push tool that checks whether a manifest exists, and pushes none if it does.  `manifest` is the
    manifest in the answer, and `contents` is what that lists.

    `linked` is what linking did for the request.  `not_linked` is why the node gets no layers as links, in a sentence.

    `node_waits_until` is set for a GET of a manifest, which a node sends just before it asks for the image's layers:
    the time, by the reactor's clock, at which the answer must have begun.  `client` is the address of the client that
    requests a manifest.
    """

    source: str = ""
    steps: list[str] = field(factory=list)
    reason: str = ""
    circular: bool = False
    may_decide_a_push: bool = False
    manifest: Descriptor | None = None
    contents: Manifest | None = None
    linked: LinkedLayers | None = None
    not_linked: str = ""
    client: str = ""
    node_waits_until: float | None = None

    def step(self, text: str) -> None:
        """Add a step, unless it was added already."""
        if text not in self.steps:
            self.steps.append(text)
