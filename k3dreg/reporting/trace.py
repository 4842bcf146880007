"""The story of one request, told by whoever works on it and written as one log line."""

from __future__ import annotations

from attrs import define, field

from k3dreg.oci.descriptor import Descriptor


@define
class Trace:
    """What was done for a request.

    Use cases and sources add to it; the web package writes it.  `source` is where the bytes came from, in one word
    ("cache", "export", "pushed"); `steps` are what had to happen first ("pull 12.1s", "export 3.0s"); `reason`
    is why it failed, in one sentence.
    `circular`: the client is an engine which asks because it was asked by this very daemon.  `may_decide_a_push`: the
    client asks whether a manifest is there, and may be a push tool, which sends none where it is.
    `manifest` is the manifest that the request is answered with.
    """

    source: str = ""
    steps: list[str] = field(factory=list)
    reason: str = ""
    circular: bool = False
    may_decide_a_push: bool = False
    manifest: Descriptor | None = None

    def step(self, text: str) -> None:
        """Add a step; said twice, it is told once."""
        if text not in self.steps:
            self.steps.append(text)
