"""Files for users, and comments that several of them contain."""

from __future__ import annotations

import textwrap

from attrs import frozen

from k3dreg.clusters.place import HOST, Place

# Columns of a comment, so that it is readable beside another window.
_WIDTH = 100


@frozen
class File:
    """A file for the user.  `name` is a path relative to the directory of all of a cluster's files."""

    name: str
    text: str


def comment(*paragraphs: str) -> str:
    """Return the paragraphs as `#` lines, with an empty one between.

    A paragraph of one line is wrapped; one of several lines, such as commands, keeps its lines.
    """
    blocks = []
    for paragraph in filter(None, paragraphs):
        lines = (
            paragraph.splitlines() if "\n" in paragraph else textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False)
        )
        blocks.append("\n".join(f"# {line}" for line in lines))
    return "\n#\n".join(blocks) + "\n"


def about_images(place: Place) -> tuple[str, ...]:
    """Return paragraphs about the names of images."""
    pushed = [place.host_address]
    # A name in `.localhost` leads to this machine for programs on it (RFC 6761, 6.3), and to the registry for nodes.
    if place.mode != HOST and place.name.endswith(".localhost"):
        pushed.append(f"{place.name}:{place.host_port}")
    return (
        "Pods get every image that Docker has or can pull, by its own name. `docker build -t my-image .` is enough for "
        "a pod with `image: my-image`; nothing is pushed. An image that is pushed to "
        f"{' or '.join(pushed)} has that name in pods, too.",
        "A pull by tag gets the image that Docker has under this tag then. A node asks for :latest whenever a pod "
        "starts, and for another tag once (imagePullPolicy). With Docker's containerd image store, k3dreg also serves "
        "digests (image@sha256:...). With the classic one, nodes get those from the image's own registry.",
    )


def about_offline(place: Place, how: str = "") -> str:
    """Return a paragraph about images that k3dreg cannot give.

    `how` says what the user has to do, beside this file, to keep nodes from asking other registries.
    """
    if place.offline:
        return f"Nodes ask no registry but k3dreg{how}. They cannot pull an image that k3dreg cannot give."
    return (
        "Nodes pull an image that k3dreg cannot give from the image's own registry. To prevent that, run k3dreg config "
        "with --offline."
    )


def about_volume(place: Place) -> str:
    """Return a paragraph about the volume of a k3dreg in a container."""
    return (
        f"Pushed and cached content is kept in the volume {place.name}, which outlives the container: the next one "
        f"with this volume has all of it. To remove the content, run docker volume rm {place.name}."
    )


def about_proxy(place: Place) -> str:
    """Return a paragraph about nodes that use a proxy; "" if they never do for this address."""
    # Go's HTTP client, which containerd uses, never sends requests to loopback addresses through a proxy.
    if place.name == "localhost" or place.name.startswith("127."):
        return ""
    return f"If the nodes have a proxy (HTTP_PROXY), their NO_PROXY must list {place.name}."


def about_hosting() -> str:
    """Return a paragraph about Tilt and Skaffold."""
    return (
        "Tilt and Skaffold find the registry by a ConfigMap. To make it, run k3dreg config with --configmap, and pipe "
        "the output into `kubectl apply -f -`."
    )
