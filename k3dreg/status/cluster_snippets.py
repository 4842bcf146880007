"""The status page's copies of the files that `k3dreg config` prints, for the address at which a browser finds it."""

from __future__ import annotations

import re

from attrs import evolve, frozen
from twisted.web.template import Tag, tags

from k3dreg.clusters.files import CASES, files_for, place_for
from k3dreg.clusters.place import HOST

# A `Host` header that the page may show for copying.
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.\-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_LOOPBACK = re.compile(r"(.*\.)?localhost|127\..*|0\.0\.0\.0|\[::1?\]", re.IGNORECASE)
# A placeholder for the user's own path.
_CA = "/path/to/ca.pem"


@frozen
class Address:
    """The address at which a browser found the page.  `host` is "" for the browser's own machine (loopback)."""

    host: str
    port: int
    secure: bool = False

    @classmethod
    def of(cls, header: str | None, *, secure: bool = False) -> Address:
        """Return the address in a `Host` header; this machine's port 5000 if the header is missing or invalid."""
        match = _HOST.fullmatch(header) if header and len(header) <= 255 else None
        if match is None:
            return cls("", 5000, secure)
        port = int(match[3] or (443 if secure else 80))
        if not 0 < port < 65536:
            return cls("", 5000, secure)
        return cls("" if _LOOPBACK.fullmatch(match[1]) else match[1], port, secure)


def snippets(address: Address) -> list[Tag]:
    """Return an introduction, and a `<details>` for each kind of cluster, of which the first is open."""
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
            # `tabindex` and `role`, because a scrollable element must be reachable by keyboard.
            label = {"aria-label": f"{cluster}: {file.name}"}
            files += [tags.p(tags.code(file.name)), tags.pre(file.text, tabindex="0", role="region", **label)]
        part = tags.details(tags.summary(cluster), tags.p("Printed by ", tags.code(command)), *files)
        told.append(part(open="open") if number == 0 else part)
    return told
