"""Write pulls, sizes and times as text, for the status page and the log."""

from __future__ import annotations

from datetime import UTC, datetime

from k3dreg.formats.text import counted, size
from k3dreg.status.overview import SeenPull


def summary(pull: SeenPull) -> str:
    """Return what a pull that is over came to.

    my-app:dev to k3d-k3s-default-agent-0: 6 layers linked, 1 sent (12.0 MB), 2 there already, 1.9 s
    nginx:9 to k3d-k3s-default-agent-0: failed after 0.3 s with 404: manifest for nginx:9 not found
    """
    return f"{pull.image} to {pull.who}: {outcome(pull)}"


def outcome(pull: SeenPull) -> str:
    """Return how a pull ended, with the seconds, and with the reason of a failure."""
    layers = layers_of(pull)
    if pull.status:
        status = "" if pull.broke_off else f" with {pull.status}"
        said = f"failed after {pull.seconds:.1f} s{status}: {pull.reason or 'the answer broke off'}"
        return f"{layers}, {said}" if layers else said
    not_linked = f" (not linked: {pull.not_linked})" if pull.not_linked else ""
    return f"{layers or 'nothing to send'}, {pull.seconds:.1f} s{not_linked}"


def layers_of(pull: SeenPull) -> str:
    """Return where a pull's layers came from so far, as in `6 layers linked, 1 sent (12.0 MB), 2 there already`."""
    ways = [
        (pull.linked, "linked"),
        (pull.sent, f"sent ({size(pull.sent_bytes)})"),
        (pull.there, "there already"),
    ]
    noun = "layer" if pull.whole else "blob"
    told: list[str] = []
    for count, way in ways:
        if count:
            told.append(f"{count if told else counted(count, noun)} {way}")
    return ", ".join(told)


def clock(seconds: float) -> str:
    """Return a time of day, UTC; `seconds` is since the epoch."""
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}"
