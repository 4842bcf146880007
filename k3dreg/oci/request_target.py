"""The target of a request, and the host that the request is for (RFC 9112, section 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from k3dreg.oci.errors import BadRequest

# RFC 9110, 7.2: Host = uri-host [ ":" port ].  RFC 3986, 3.2.2: an address in brackets, or a name, which may be empty.
_HOST = re.compile(rb"(?P<name>\[[0-9A-Za-z:.%_~-]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
# RFC 9112, 3.2.2.
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_NOT_OUR_PATH = "the target of a request is a path, such as /v2/, or an http URL"


def resolve_target(target: bytes, hosts: Sequence[bytes], version: bytes) -> tuple[bytes, bytes]:
    """Return the path and query of a request line's `target`, and the host that the request is for.

    `hosts` are the values of the request's `Host` headers.  The host of an absolute URL replaces them (RFC 9112,
    3.2.2).  Raises `BadRequest` if there are several values, if an HTTP/1.1 request has none (RFC 9112, 3.2), and for
    an invalid host or target.
    """
    if len(hosts) > 1:
        raise BadRequest("a request has one Host header, and this one has several (RFC 9112, 3.2)")
    if not hosts and version != b"HTTP/1.0":
        raise BadRequest("a request of HTTP/1.1 has a Host header, and this one has none (RFC 9112, 3.2)")
    host = hosts[0] if hosts else b""
    if not _HOST.fullmatch(host):
        raise BadRequest("the Host header is no host and port")
    if target.startswith(b"/") or target == b"*":
        return target, host
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise BadRequest(_NOT_OUR_PATH)
    host, rest = absolute.groups()
    named = _HOST.fullmatch(host)
    if named is None or not named["name"]:  # RFC 9110, 4.2.1
        raise BadRequest(_NOT_OUR_PATH)
    return rest if rest.startswith(b"/") else b"/" + rest, host
