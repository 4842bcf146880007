"""The command lines of the commands that take the daemon's options and a few others, such as `doctor`."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.python import usage

from k3dreg.config.options import Options
from k3dreg.config.usage import CommandLine, wrapped

_THE_DAEMONS = (
    "This command also takes the daemon's options (k3dreg --help), environment and settings file. Give it the same "
    "ones as the daemon, so that it looks at the same engine, port and state."
)


class _Tool(Options):
    """The daemon's options, so that the command uses the daemon's engine, port and state.

    `own` is the command line that the help shows.  `images` are the arguments IMAGE.  `takes` says what arguments are.
    """

    own: type[CommandLine]
    takes = "images"
    images: tuple[str, ...] = ()

    def parseArgs(self, *images: str) -> None:
        """Take the arguments IMAGE.  Raises `usage.UsageError` for an option after an image."""
        late = next((image for image in images if image.startswith("-")), None)
        if late is not None:
            raise usage.UsageError(f"{late[:100]!r}: options come before {self.takes}")
        self.images = images

    def sections(self) -> list[str]:
        """Return the help of the command's own options, and a hint at the daemon's."""
        return [*self.own().sections(), wrapped(_THE_DAEMONS)]


class _Doctor(CommandLine):
    synopsis = "Usage: k3dreg doctor [OPTION]..."
    about = (
        "Check what k3dreg needs: Docker's socket, the engine and its image store, the port, the disk, credential "
        "helpers, and whether clients reach this registry. Each line has a verdict (ok, warn or fail) and says what "
        "to do. The exit status is 1 if a check failed."
    )
    examples: tuple[str, ...] = ("k3dreg doctor", "k3dreg doctor --json")
    optFlags = [["json", None, "Print the checks as one JSON object"]]  # noqa: RUF012  (the shape of usage.Options)


class _Why(CommandLine):
    synopsis = "Usage: k3dreg why [OPTION]... IMAGE"
    about = (
        "Show step by step how k3dreg answers a node's request for IMAGE, and why. Nothing is pulled. The exit status "
        "is 1 if a node would not get the image."
    )
    examples: tuple[str, ...] = ("k3dreg why nginx:1.27", "k3dreg why --origin-fallback ghcr.io/team/app:1")


class _Warm(CommandLine):
    synopsis = "Usage: k3dreg warm [OPTION]... IMAGE..."
    about = (
        "Request each IMAGE from a running k3dreg as a node would, so that Docker pulls what it lacks and k3dreg "
        "prepares it. The exit status is 1 if k3dreg could not give an image."
    )
    examples: tuple[str, ...] = (
        "k3dreg warm nginx:1.27 redis:7",
        "k3dreg warm --server http://127.0.0.1:5005 my-app:1",
    )
    optParameters = [["server", None, "http://127.0.0.1:5000", "URL of the running k3dreg"]]  # noqa: RUF012


class _Refresh(CommandLine):
    synopsis = "Usage: k3dreg refresh [OPTION]... IMAGE..."
    about = (
        "Ask the registry of each IMAGE now whether its tag has moved, and let Docker pull it then. An image that was "
        "built, tagged or loaded here is not replaced. You may run it while a daemon runs. The exit status is 1 if "
        "Docker does not have what the registry has for an image."
    )
    examples: tuple[str, ...] = ("k3dreg refresh nginx ghcr.io/team/app:dev",)


class _Link(CommandLine):
    synopsis = "Usage: k3dreg link [OPTION]... IMAGE [NODE]..."
    about = (
        "Link the layers that Docker has unpacked of IMAGE into the named nodes, by default all nodes of k3d and kind. "
        "Such a node's pull then neither fetches nor unpacks them. Where k3dreg cannot reach the nodes' files, a "
        "helper container does it. The exit status is 1 if a node lacks a layer."
    )
    examples: tuple[str, ...] = ("k3dreg link my-app:1", "k3dreg link my-app:1 k3d-k3s-default-agent-0")


class _Attach(CommandLine):
    synopsis = "Usage: k3dreg attach [OPTION]... [CLUSTER]..."
    about = (
        "Point the nodes of running clusters of k3d, kind or minikube at k3dreg, without creating them anew. Each node "
        "tries first whether it reaches k3dreg. What a node had before is kept: k3dreg detach puts it back. Without a "
        "name, list the clusters. The exit status is 1 if a node is not attached."
    )
    examples: tuple[str, ...] = ("k3dreg attach", "k3dreg attach dev", "k3dreg attach --all --follow")
    optFlags = [  # noqa: RUF012
        ["all", None, "Attach all clusters"],
        ["follow", None, "Go on, and attach nodes and clusters that start later"],
    ]


class _Detach(CommandLine):
    synopsis = "Usage: k3dreg detach [OPTION]... CLUSTER..."
    about = (
        "Remove from the nodes of running clusters what k3dreg attach wrote, and leave the networks that it joined. "
        "The exit status is 1 if a node is not detached."
    )
    examples: tuple[str, ...] = ("k3dreg detach dev", "k3dreg detach --all")
    optFlags = [["all", None, "Detach all clusters"]]  # noqa: RUF012


class DoctorOptions(_Doctor, _Tool):
    """The command line of `k3dreg doctor`."""

    own = _Doctor

    def parseArgs(self, *images: str) -> None:
        """Raise `usage.UsageError` if there is an argument IMAGE."""
        super().parseArgs(*images)
        if images:
            raise usage.UsageError(f"doctor takes no image, such as {images[0][:100]!r}; k3dreg why IMAGE does")


class WhyOptions(_Why, _Tool):
    """The command line of `k3dreg why`."""

    own = _Why

    def parseArgs(self, *images: str) -> None:
        """Take one argument IMAGE.  Raises `usage.UsageError` for none or several."""
        super().parseArgs(*images)
        if len(images) != 1:
            raise usage.UsageError(f"why takes one image, not {len(images)}")


class WarmOptions(_Warm, _Tool):
    """The command line of `k3dreg warm`."""

    own = _Warm

    def parseArgs(self, *images: str) -> None:
        """Take the arguments IMAGE.  Raises `usage.UsageError` if there are none."""
        super().parseArgs(*images)
        if not images:
            raise usage.UsageError("warm takes one image or more")


class RefreshOptions(_Refresh, _Tool):
    """The command line of `k3dreg refresh`."""

    own = _Refresh

    def parseArgs(self, *images: str) -> None:
        """Take the arguments IMAGE.  Raises `usage.UsageError` if there are none."""
        super().parseArgs(*images)
        if not images:
            raise usage.UsageError("refresh takes one image or more")


class LinkOptions(_Link, _Tool):
    """The command line of `k3dreg link`.  `nodes` are the arguments NODE."""

    own = _Link
    nodes: tuple[str, ...] = ()

    def parseArgs(self, *images: str) -> None:
        """Take the arguments IMAGE and NODE.  Raises `usage.UsageError` if there are none."""
        super().parseArgs(*images)
        if not images:
            raise usage.UsageError("link takes an image")
        self.images, self.nodes = images[:1], images[1:]


class _OfClusters(_Tool):
    """A command for clusters, which are the arguments CLUSTER, or all of them with `--all`."""

    takes = "clusters"
    clusters: tuple[str, ...] = ()

    def parseArgs(self, *clusters: str) -> None:
        """Take the arguments CLUSTER.  Raises `usage.UsageError` for names beside `--all`, and options after one."""
        super().parseArgs(*clusters)
        if clusters and self["all"]:
            raise usage.UsageError("name clusters, or say --all, not both")
        self.images, self.clusters = (), clusters

    def need_clusters(self, why: str = "") -> None:
        """Raise `usage.UsageError` if there is neither a name nor `--all`."""
        if not self.clusters and not self["all"]:
            raise usage.UsageError(f"{why}name a cluster, or say --all")


class AttachOptions(_Attach, _OfClusters):
    """The command line of `k3dreg attach`."""

    own = _Attach

    def parseArgs(self, *clusters: str) -> None:
        """Take the arguments CLUSTER.  Raises `usage.UsageError` for `--follow` without one and without `--all`."""
        super().parseArgs(*clusters)
        if self["follow"]:
            self.need_clusters("--follow: ")


class DetachOptions(_Detach, _OfClusters):
    """The command line of `k3dreg detach`."""

    own = _Detach

    def parseArgs(self, *clusters: str) -> None:
        """Take the arguments CLUSTER.  Raises `usage.UsageError` without one and without `--all`."""
        super().parseArgs(*clusters)
        self.need_clusters()


OPTIONS: Mapping[str, type[_Tool]] = {
    "doctor": DoctorOptions,
    "why": WhyOptions,
    "warm": WarmOptions,
    "refresh": RefreshOptions,
    "link": LinkOptions,
    "attach": AttachOptions,
    "detach": DetachOptions,
}
