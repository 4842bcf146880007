"""Files, and the comments that are the same in several."""

from __future__ import annotations

import textwrap

from attrs import frozen

from k3dreg.clusters.place import HOST, Place

# As wide as a terminal that shows a file beside another.
_WIDTH = 100


@frozen
class File:
    """`name` may have directories in it, as it lies beside the others."""

    name: str
    text: str


def comment(*paragraphs: str) -> str:
    """The paragraphs as `#` lines, with an empty one between.  One of several lines is kept as it is."""
    blocks = []
    for paragraph in filter(None, paragraphs):
        lines = (
            paragraph.splitlines() if "\n" in paragraph else textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False)
        )
        blocks.append("\n".join(f"# {line}" for line in lines))
    return "\n#\n".join(blocks) + "\n"


def about_images(place: Place) -> tuple[str, ...]:
    """What a user names images."""
    pushed = [place.host_address]
    # Such a name is this machine for programs on it (RFC 6761, 6.3), and the registry for nodes.
    if place.mode != HOST and place.name.endswith(".localhost"):
        pushed.append(f"{place.name}:{place.host_port}")
    return (
        "Images: whatever Docker has or can pull, under its own name. After `docker build -t my-image .` a pod says "
        f"`image: my-image`, without a push. What is pushed to {' or '.join(pushed)} has that name in pods, too.",
        "A tag means what it means in Docker at the time. A node asks for :latest whenever a pod starts, and for "
        "another tag once (imagePullPolicy). A digest (image@sha256:...) is given where Docker has the containerd "
        "image store; where it has the classic one, nodes get it from the image's own registry.",
    )


def about_offline(place: Place, how: str = "") -> str:
    """What happens to an image that k3dreg does not give.  `how` is what there is to do for it beside this file."""
    if place.offline:
        return f"Nodes ask no registry but k3dreg{how}: what it cannot give is not pulled."
    return (
        "What k3dreg cannot give, nodes get from the image's own registry. Where they may not: the same command with "
        "--offline."
    )


def about_hosting() -> str:
    """Where Tilt and Skaffold come in."""
    return (
        "Tilt and Skaffold find the registry by a ConfigMap: the same command with --configmap, piped into "
        "`kubectl apply -f -`."
    )
