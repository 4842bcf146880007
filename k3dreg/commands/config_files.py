"""`k3dreg config CLUSTER`: prints the files that point a cluster at k3dreg, for the user's own names and ports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.python import usage

from k3dreg.clusters.files import CASES, files_for, hosting_for, place_for
from k3dreg.clusters.place import Place, check_host, check_image, check_path, check_port
from k3dreg.clusters.text import File
from k3dreg.commands.printing import say
from k3dreg.config.usage import CommandLine, complaint
from k3dreg.oci.errors import UsageError

SYNOPSIS = f"Usage: k3dreg config {'|'.join(CASES)} [OPTION]... [FILE]"


class ConfigOptions(CommandLine):
    """The command line after the kind of cluster.  `file` is the argument FILE, "" if there is none."""

    synopsis = SYNOPSIS
    about = (
        "Print the files that point a cluster at k3dreg. If there are several, the line before each has its name. With "
        "FILE, print only that one."
    )
    examples = (
        "k3dreg config k3d --mode host > k3d-cluster.yaml",
        "k3dreg config kind --name registry.localhost --port 5000",
    )
    optParameters = [  # noqa: RUF012  (the shape of usage.Options)
        [
            "mode",
            None,
            None,
            "Where k3dreg runs: created (by k3d, with the cluster), separate (in a container of its own) or host (on "
            "this machine, in no container)",
        ],
        ["name", None, None, "Host name or address by which nodes reach k3dreg"],
        ["port", None, None, "Port by which nodes reach k3dreg [5000]"],
        ["host-port", None, None, "Port of the host by which its programs reach a k3dreg in a container [5005]"],
        ["image", None, None, "The image to run k3dreg from [k3dreg:latest]"],
        ["socket", None, None, "Docker's socket on the host [/var/run/docker.sock]"],
        ["ca", None, None, "For a k3dreg with HTTPS: the certificate authority's file, on the host"],
    ]
    optFlags = [  # noqa: RUF012
        ["offline", None, "Keep nodes from falling back to an image's own registry"],
        ["auth", None, "For a k3dreg with --htpasswd: add placeholders for a user and a password"],
        ["configmap", None, "Print only the ConfigMap by which Tilt and Skaffold find the registry"],
    ]
    file = ""

    def parseArgs(self, file: str = "") -> None:
        """Take the argument FILE."""
        self.file = file


def place_of(cluster: str, options: Any) -> Place:
    """Return the place that the options describe.  Raises `UsageError`."""

    def port(name: str) -> int:
        return check_port(f"--{name}", options[name]) if options[name] else 0

    place = place_for(
        cluster,
        options["mode"] or "",
        check_host(options["name"]) if options["name"] else "",
        port("port"),
        port("host-port"),
    )
    return evolve(
        place,
        image=check_image(options["image"]) if options["image"] else place.image,
        socket=check_path("--socket", options["socket"]) if options["socket"] else place.socket,
        ca=check_path("--ca", options["ca"]) if options["ca"] else "",
        offline=bool(options["offline"]),
        auth=bool(options["auth"]),
    )


def text_of(arguments: Sequence[str]) -> str:
    """Return the text to print.  Raises `UsageError` or `usage.UsageError`."""
    options: Any = ConfigOptions()  # type: ignore[no-untyped-call]
    named = arguments[:1] and not arguments[0].startswith("-")
    options.parseOptions(list(arguments[1:] if named else arguments))
    if not named:
        raise UsageError(f"name the kind of cluster: {', '.join(CASES)}")
    cluster = arguments[0]
    place = place_of(cluster, options)
    files: tuple[File, ...] = files_for(cluster, place)
    if options["configmap"]:
        files = (hosting_for(cluster, place),)
    if options.file:
        wanted = [file for file in files if file.name == options.file]
        if not wanted:
            raise UsageError(f"there is no file {options.file!r}; choose from {', '.join(file.name for file in files)}")
        return wanted[0].text
    if len(files) == 1:
        return files[0].text
    return "\n".join(f"# ==> {file.name} <==\n{file.text}" for file in files)


def main(arguments: Sequence[str]) -> None:
    """Print the files, or exit with status 2 and a usage line."""
    try:
        text = text_of(arguments)
    except (usage.UsageError, UsageError) as error:
        sys.stderr.write(complaint(error, ConfigOptions(), "config"))  # type: ignore[no-untyped-call]
        raise SystemExit(2) from None
    say(text.removesuffix("\n"))
