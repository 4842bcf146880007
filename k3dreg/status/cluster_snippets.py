"""The files that point a cluster at the address that the status page is seen under, as `k3dreg config` has them."""

from __future__ import annotations

import re

from attrs import evolve, frozen
from twisted.web.template import Tag, tags

from k3dreg.clusters.files import CASES, files_for, place_for
from k3dreg.clusters.place import HOST

# What a `Host` header may look like to be shown for copying.
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.\-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_LOOPBACK = re.compile(r"(.*\.)?localhost|127\..*|0\.0\.0\.0|\[::1?\]", re.IGNORECASE)
# A place for the file that nobody but the user knows.
_CA = "/path/to/ca.pem"


@frozen
class Address:
    """Where a browser found the page.  `host` is "" where that is the browser's own machine."""

    host: str
    port: int
    secure: bool = False

    @classmethod
    def of(cls, header: str | None, *, secure: bool = False) -> Address:
        """Out of a `Host` header; a stand-in for one that is none."""
        match = _HOST.fullmatch(header) if header and len(header) <= 255 else None
        if match is None:
            return cls("", 5000, secure)
        port = int(match[3] or (443 if secure else 80))
        if not 0 < port < 65536:
            return cls("", 5000, secure)
        return cls("" if _LOOPBACK.fullmatch(match[1]) else match[1], port, secure)


def snippets(address: Address) -> list[Tag]:
    """One part for each kind of cluster, of which the first is open."""
    port = str(address.port)
    said = "Nodes reach k3dreg by the address in these files"
    said += ", which is for clusters on this machine. " if not address.host else ". "
    told = [
        tags.p(said, "For other names, a registry that k3d creates, or Tilt and Skaffold: ", tags.code("k3dreg config"))
    ]
    for number, (cluster, cases) in enumerate(CASES.items()):
        mode = HOST if HOST in cases else next(iter(cases))
        place = place_for(cluster, mode, address.host, address.port)
        place = evolve(place, ca=_CA if address.secure else "")
        command = f"k3dreg config {cluster}{'' if mode == next(iter(cases)) else f' --mode {mode}'}"
        command += f" --name {place.name} --port {port}{f' --ca {_CA}' if address.secure else ''}"
        files: list[Tag] = []
        for file in files_for(cluster, place):
            # It can be scrolled, so it can be reached by keyboard.
            label = {"aria-label": f"{cluster}: {file.name}"}
            files += [tags.p(tags.code(file.name)), tags.pre(file.text, tabindex="0", role="region", **label)]
        part = tags.details(tags.summary(cluster), tags.p("Printed by ", tags.code(command)), *files)
        told.append(part(open="open") if number == 0 else part)
    return told
