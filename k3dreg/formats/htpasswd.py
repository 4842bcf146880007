"""Parse the file of users that Apache's `htpasswd -B` writes and the official registry image reads.

Each line is `name:hash` with a bcrypt hash.
"""

from __future__ import annotations

import re

from k3dreg.oci.errors import UsageError

# crypt(5), "bcrypt": version, cost, then 22 characters of salt and 31 of hash in bcrypt's own base64.
_BCRYPT = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
# The range of `htpasswd -C`.  Each step doubles the time of a check; 17 takes some ten seconds.
_LOWEST_COST, _HIGHEST_COST = 4, 17


def parse_htpasswd(data: bytes) -> dict[str, bytes]:
    """Return the password hashes by user name.  Empty lines, and those that begin with `#`, are ignored.

    Raises `UsageError` with the number of the wrong line and the reason, but not its text, which may have a password.
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
