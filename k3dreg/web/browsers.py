"""Refuses requests that a browser sends on behalf of another site.

Every page that is open in a browser can send requests to k3dreg from the user's own machine.  Two kinds are refused:

- A page whose *name* was made to resolve to this machine (DNS rebinding) has the same origin as k3dreg for the browser,
  and could read answers.  The name in `Host` shows it, as it is none of this registry's names.
- Any other page can send requests whose answers it cannot read: images, forms, `fetch` without CORS.  These could make
  Docker pull, and open upload sessions.  `Sec-Fetch-Site`, `Origin` or `Referer` show that another site sent them.

Nodes and tools send none of the headers by which a browser is recognized, so their requests are not checked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

from k3dreg.oci.errors import BrowserRefused

# Headers that every browser sends.  Over plain HTTP to a name other than localhost there is no `Sec-Fetch-Site` (Fetch
# Metadata), and a GET of the same origin has no `Origin` (Fetch, 3.2).  Scripts can change a value of these three but
# not remove the header, `Referer` aside.
_BROWSERS_HEADERS = ("origin", "accept-language", "referer")
# Scripts cannot set a header of this prefix (Fetch, "forbidden request-header"), and tools have no use for one.
_BROWSERS_PREFIX = b"sec-"
# The User-Agent of every browser begins with this (HTML, 8.10.1.1).
_BROWSERS_AGENT = "mozilla/"

# A `Host` as a browser writes it (URL, 4.3).  It allows names that DNS does not, such as those with underscores.
_HOST = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")

# Values of `Sec-Fetch-Site` for requests of this registry's own page, and of the user (address bar, bookmark).
_OWN_SITES = ("same-origin", "none")
# Paths under `/v2/` that can be read without making Docker pull or export.
_LISTS = re.compile(rb"/v2/?|/v2/_catalog|/v2/[^%]*/tags/list")

_CURL = "browsers may open k3dreg's own page only; for the registry use a tool such as curl or crane"


def check_browser(headers: Headers, method: bytes, path: bytes, is_own_host: Callable[[str], bool]) -> None:
    """Raise `BrowserRefused` for a request that a browser sends on behalf of another site.

    `path` has no query, and is not unquoted.  `is_own_host` tells whether a name without a port is this registry's.
    """
    if not _is_browser(headers):
        return
    host = _one(headers, "host").lower()
    match = _HOST.fullmatch(host)
    if match is None:
        raise BrowserRefused("a browser asks for no host, or for one that cannot be a registry's")
    name = match[1].removesuffix(".")
    is_local = name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
    if not (is_local or _is_address(name) or is_own_host(name)):
        raise BrowserRefused(
            f"a browser asks for {host}, which is no name of this registry that k3dreg knows",
            advice=f"to add the name: --alias {host if match[2] else f'{host}:5000'} (or K3DREG_ALIAS)",
        )
    if _is_read(method) and path == b"/" and _one(headers, "sec-fetch-dest") in ("", "document"):
        # The user followed a link on another site's page.  That page cannot read the answer.
        return
    if not _is_of_own_site(headers, host, told=is_local or (_is_read(method) and _starts_no_work(path))):
        raise BrowserRefused("a browser asks this on behalf of another site's page", advice=_CURL)


def _is_of_own_site(headers: Headers, host: str, *, told: bool) -> bool:
    """Return whether this registry's own page or the user sent the request.

    `told` is returned if no header of the browser tells.
    """
    site = _one(headers, "sec-fetch-site")
    if site:
        return site in _OWN_SITES
    for name in ("origin", "referer"):
        if headers.hasHeader(name):
            return _authority(_one(headers, name)) == host
    return told


def _is_browser(headers: Headers) -> bool:
    if any(headers.hasHeader(name) for name in _BROWSERS_HEADERS):
        return True
    if any(name.lower().startswith(_BROWSERS_PREFIX) for name, _ in headers.getAllRawHeaders()):
        return True
    return _one(headers, "user-agent").lower().startswith(_BROWSERS_AGENT)


def _one(headers: Headers, name: str) -> str:
    """Return the value of a header; "" if it is missing or occurs more than once."""
    values = headers.getRawHeaders(name.encode("ascii")) or ()
    return values[0].decode("latin-1").strip() if len(values) == 1 else ""


def _authority(url: str) -> str:
    """Return host and port of a URL as in `Host`: browsers leave out the scheme's default port in both."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _is_read(method: bytes) -> bool:
    return method in (b"GET", b"HEAD")


def _starts_no_work(path: bytes) -> bool:
    return (not path.startswith(b"/v2") and b"%" not in path) or _LISTS.fullmatch(path) is not None


def _is_address(name: str) -> bool:
    return _address(name) is not None


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return address is not None and address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is, or None.  Browsers normalize all spellings of an IPv4 address."""
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
