"""The file of users that Apache's `htpasswd -B` writes, and that the official registry image reads: one
`name:hash` to a line, the hash by bcrypt.  Pure: bytes in, values out.
"""

from __future__ import annotations

import re

from k3dreg.oci.errors import UsageError

# crypt(5), "bcrypt": version, cost, 22 characters of salt and 31 of hash, in bcrypt's own base64.
_BCRYPT = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
# What htpasswd takes for `-C`; each step doubles the time, and 17 is some ten seconds.
_LOWEST_COST, _HIGHEST_COST = 4, 17


def parse_htpasswd(data: bytes) -> dict[str, bytes]:
    """The hash of each user's password, by name.  Empty lines, and those that begin with `#`, are left out.

    Raises `UsageError`, which says which line it is and why, and shows nothing of it.
    """
    users: dict[str, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        entry = line.strip()
        if not entry or entry.startswith(b"#"):
            continue
        name, colon, hashed = entry.partition(b":")
        if not colon or not name:
            raise UsageError(f"line {number} is not NAME:HASH")
        match = _BCRYPT.fullmatch(hashed)
        if match is None or not _LOWEST_COST <= int(match[1]) <= _HIGHEST_COST:
            raise UsageError(f"line {number} has no bcrypt hash, which htpasswd -B writes")
        try:
            user = name.decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"line {number} has a name that is not UTF-8") from None
        if user in users:
            raise UsageError(f"line {number} is the second for its user")
        users[user] = hashed
    return users
