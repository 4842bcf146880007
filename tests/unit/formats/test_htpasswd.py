"""The password file's grammar: what htpasswd -B writes, and nothing else."""

import pytest

from k3dreg.formats.htpasswd import parse_htpasswd
from k3dreg.oci.errors import UsageError

# By `htpasswd -Bbn user password`.
HASH = b"$2y$05$guRC2rrCk5tNx1tymP1Cie4c1lwXMyt6DhXxitb5sHR1dUtmsLp42"


def test_what_htpasswd_writes() -> None:
    assert parse_htpasswd(b"user:" + HASH + b"\n\n") == {"user": HASH}


def test_comments_empty_lines_and_carriage_returns() -> None:
    data = b"# our users\r\n\r\nanna:" + HASH + b"\r\n  \n\xc3\xa9va:" + HASH.replace(b"2y", b"2b")
    assert list(parse_htpasswd(data)) == ["anna", "éva"]


def test_a_file_of_nobody() -> None:
    assert parse_htpasswd(b"") == {}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"no colon", "line 2 is not NAME:HASH"),
        (b":" + HASH, "line 2 is not NAME:HASH"),
        (b"u:$apr1$GIlCZZH.$kHhWZwyH2cQbLxOlA3JRD/", "line 2 has no bcrypt hash"),
        (b"u:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "line 2 has no bcrypt hash"),
        (b"u:password", "line 2 has no bcrypt hash"),
        (b"u:" + HASH + b":more", "line 2 has no bcrypt hash"),
        (b"u:" + HASH[:-1], "line 2 has no bcrypt hash"),
        (b"u:" + HASH[:-1] + b"=", "line 2 has no bcrypt hash"),
        # Half a day for each guess.
        (b"u:" + HASH.replace(b"$05$", b"$31$"), "line 2 has no bcrypt hash"),
        (b"u:" + HASH.replace(b"$05$", b"$00$"), "line 2 has no bcrypt hash"),
        (b"\xff:" + HASH, "line 2 has a name that is not UTF-8"),
        (b"first:" + HASH, "line 2 is the second for its user"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_by_its_number_and_not_shown(line: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_htpasswd(b"first:" + HASH + b"\n" + line)
    assert complaint in str(raised.value)
    for secret in (HASH.decode()[10:20], "password", "GIl", "W6ph", "no colon"):
        assert secret not in str(raised.value).replace("no bcrypt", "")
