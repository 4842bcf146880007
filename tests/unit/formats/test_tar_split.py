from __future__ import annotations

import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.tar_split import FileContent, Raw, path_of, read_tar_split, tar_size, unzip_lines
from k3dreg.oci.errors import ContentError
from tests.fakes.images import make_tar
from tests.fakes.tar_splits import split


def raw(data: bytes) -> bytes:
    return b'{"type":2,"payload":"%s","position":0}\n' % base64.b64encode(data)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=9).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 90
)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=8))
def test_what_was_split_goes_together_again(files: dict[str, bytes]) -> None:
    tar = make_tar(files.items())
    compressed, contents = split(tar)
    together = b"".join(
        part.data if isinstance(part, Raw) else contents[part.name.decode("utf-8", "surrogateescape")]
        for part in read_tar_split(unzip_lines(compressed))
    )
    assert together == tar
    assert tar_size(unzip_lines(compressed)) == len(tar)


@given(st.binary(max_size=70))
def test_the_size_of_a_segment_is_known_without_decoding_it(data: bytes) -> None:
    assert tar_size([raw(data)]) == len(data)
    assert tar_size(
        [json.dumps({"position": 1, "payload": base64.b64encode(data).decode(), "type": 2}).encode()]
    ) == len(data)


def test_a_name_that_is_not_text_comes_in_base64() -> None:
    line = b'{"type":1,"name_raw":"%s","size":3,"payload":"x"}' % base64.b64encode(b"a\xff")
    assert list(read_tar_split([line])) == [FileContent(b"a\xff", 3)]


def test_a_file_without_content_is_passed_over() -> None:
    lines = [b'{"type":1,"name":"directory/"}', b'{"type":1,"name":"empty","size":0}', b'{"type":1,"name":"","size":0}']
    assert list(read_tar_split(lines)) == []
    assert tar_size(lines) == 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"type":3}',
        b'{"payload":""}',
        b'{"type":1,"name":"a","size":-1}',
        b'{"type":1,"name":"a","size":"3"}',
        b'{"type":1,"name":"a","size":true}',
        b'{"type":2,"payload":"abc"}',
        b'{"type":2,"payload":"abcd',
    ],
)
def test_what_is_no_tar_split_is_refused(line: bytes) -> None:
    with pytest.raises(ContentError):
        list(read_tar_split([line]))
    with pytest.raises(ContentError):
        tar_size([line])


@pytest.mark.parametrize(
    "line", [b'{"type":1,"size":3}', b'{"type":1,"name":"\\ud800","size":3}', b'{"type":2,"payload":"a+*="}']
)
def test_damage_is_noticed_where_it_matters(line: bytes) -> None:
    with pytest.raises(ContentError):
        list(read_tar_split([line]))


def test_a_tar_split_that_is_cut_is_refused() -> None:
    whole = gzip.compress(raw(bytes(1000)) * 3)
    for size in (0, 5, len(whole) - 9, len(whole) - 1):
        if size:
            with pytest.raises(ContentError):
                list(unzip_lines(whole[:size]))
    with pytest.raises(ContentError):
        list(unzip_lines(b"no gzip file"))


@pytest.mark.parametrize(
    ("name", "path"),
    [(b"a/b", b"a/b"), (b"./a/b", b"a/b"), (b"/a//b/.", b"a/b"), (b"a/..b", b"a/..b"), (b"\xff", b"\xff")],
)
def test_names_become_relative_paths(name: bytes, path: bytes) -> None:
    assert path_of(name) == path


@pytest.mark.parametrize("name", [b"", b".", b"/", b"..", b"../a", b"a/../b", b"/..", b"a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    with pytest.raises(ContentError):
        path_of(name)
