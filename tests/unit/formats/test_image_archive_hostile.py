"""Tests of k3dreg.formats.image_archive: what no engine writes."""

from __future__ import annotations

import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.image_archive import ArchiveIndex, ArchiveReader, BlobBegin, claimed_digest, normalise
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ArchiveError
from tests.fakes.images import make_tar

MARKER = bytes(1024)
HEX = "a" * 64
CONFIG = f"{HEX}.json"


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", size: int = -1) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if size < 0 else size
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % 512)


def listing(*layers: str) -> bytes:
    return entry("manifest.json", json.dumps([{"Config": CONFIG, "Layers": layers}]).encode())


def read(*parts: bytes) -> tuple[list[str], ArchiveIndex]:
    """The names of the blobs, and the index."""
    reader = ArchiveReader()
    names = [event.name for event in reader.feed(b"".join(parts) + MARKER) if isinstance(event, BlobBegin)]
    return names, reader.finish()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..", "/"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE])
def test_names_that_lead_out_of_the_archive_are_refused(name: str, kind: bytes) -> None:
    block = entry("x", kind=kind)
    raw = bytearray(block)
    raw[: len(name)] = name.encode()
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    with pytest.raises(ArchiveError, match=r"absolute|out of it"):
        read(bytes(raw), listing())


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "../a/../../x"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_that_lead_out_of_the_archive_are_refused(target: str, kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="out of it"):
        read(entry("a/layer.tar", kind=kind, link=target), listing())


def test_a_hard_links_target_is_seen_from_the_root_and_a_symbolic_links_from_where_it_is() -> None:
    _, index = read(
        entry(CONFIG),
        entry("b/layer.tar", b"1"),
        entry("a/layer.tar", kind=tarfile.LNKTYPE, link="b/layer.tar"),
        entry("c/layer.tar", kind=tarfile.SYMTYPE, link=".././a//layer.tar"),
        listing("a/layer.tar", "c/layer.tar"),
    )
    assert index.images[0].layers == ("b/layer.tar", "b/layer.tar")


def test_a_link_may_lead_through_members_of_any_name() -> None:
    link = entry("a/layer.tar", kind=tarfile.SYMTYPE, link="../other")
    other = entry("other", kind=tarfile.SYMTYPE, link="b/layer.tar")
    _, index = read(link, other, entry("b/layer.tar", b"1"), entry(CONFIG), listing("a/layer.tar"))
    assert index.images[0].layers == ("b/layer.tar",)


@pytest.mark.parametrize("listed", [(), ("a/layer.tar",)])
def test_links_that_lead_to_themselves_are_refused_listed_or_not(listed: tuple[str, ...]) -> None:
    loops = [
        [entry("a/layer.tar", kind=tarfile.SYMTYPE, link="layer.tar")],
        [
            entry("a/layer.tar", kind=tarfile.SYMTYPE, link="../b/layer.tar"),
            entry("b/layer.tar", kind=tarfile.SYMTYPE, link="../a/layer.tar"),
        ],
    ]
    for loop in loops:
        with pytest.raises(ArchiveError, match="leads to itself"):
            read(entry(CONFIG), *loop, listing(*listed))


def test_a_chain_of_links_is_followed_so_far_and_no_further() -> None:
    def chain(length: int) -> bytes:
        links = [entry(f"{n}/layer.tar", kind=tarfile.SYMTYPE, link=f"../{n + 1}/layer.tar") for n in range(length)]
        return b"".join(links) + entry(f"{length}/layer.tar", b"1")

    _, index = read(entry(CONFIG), chain(40), listing("0/layer.tar"))
    assert index.images[0].layers == ("40/layer.tar",)
    with pytest.raises(ArchiveError, match="too many links"):
        read(entry(CONFIG), chain(41), listing("0/layer.tar"))


def test_a_link_to_nowhere_matters_only_if_an_image_needs_it() -> None:
    dangling = entry("a/layer.tar", kind=tarfile.SYMTYPE, link="../b/layer.tar")
    read(entry(CONFIG), dangling, listing())
    with pytest.raises(ArchiveError, match=r"lacks 'b/layer\.tar'"):
        read(entry(CONFIG), dangling, listing("a/layer.tar"))


@pytest.mark.parametrize("name", ["index.json", "manifest.json", "oci-layout"])
def test_a_document_may_not_be_a_link_nor_come_twice_nor_be_huge(name: str) -> None:
    with pytest.raises(ArchiveError, match="is a link"):
        read(entry(name, kind=tarfile.SYMTYPE, link="elsewhere"))
    with pytest.raises(ArchiveError, match="twice"):
        read(entry(name, b"{}"), entry(f"./{name}", b"{}"))
    with pytest.raises(ArchiveError, match="more than"):
        list(ArchiveReader().feed(entry(name, size=4 * 1024 * 1024 + 1)))


def test_a_document_of_another_kind_is_none() -> None:
    with pytest.raises(ArchiveError, match=r"no manifest\.json"):
        read(entry("manifest.json", kind=tarfile.DIRTYPE), entry(CONFIG))


def test_a_layer_that_comes_twice_is_refused_when_its_name_does_not_say_what_it_holds() -> None:
    link = entry("a/layer.tar", kind=tarfile.SYMTYPE, link="../b/layer.tar")
    for parts in ([entry("a/layer.tar", b"1")] * 2, [link, entry("a/layer.tar", b"1")], [link, link]):
        with pytest.raises(ArchiveError, match="twice"):
            read(*parts, listing())


def test_a_blob_that_comes_twice_is_given_once_when_its_name_says_what_it_holds() -> None:
    names, _ = read(entry(CONFIG, b"1"), entry(f"./{CONFIG}", b"22"), listing())
    assert names == [CONFIG]


def test_a_link_in_place_of_a_blob_seen_before_is_refused() -> None:
    with pytest.raises(ArchiveError, match="twice"):
        read(entry(CONFIG, b"1"), entry(CONFIG, kind=tarfile.SYMTYPE, link="x"), listing())
    with pytest.raises(ArchiveError, match="twice"):
        read(entry(CONFIG, kind=tarfile.SYMTYPE, link="x"), entry(CONFIG, b"1"), listing())


@pytest.mark.parametrize(
    "name",
    [
        f"blobs/sha256/{'A' * 64}",
        f"blobs/sha256/{'a' * 63}",
        f"blobs/sha256/{'g' * 64}",
        f"blobs/md5/{'a' * 32}",
        f"blobs/sha256/{HEX}/x",
        f"blobs/{HEX}",
        "blobs/sha256/x",
        "a/b/layer.tar",
        "layer.tar",
        "VERSION",
        "caf\udce9/layer.tar",
        f"blobs/sha256/{HEX[:-1]}\udce9",
    ],
)
def test_members_that_nothing_can_refer_to_are_passed_over(name: str) -> None:
    names, index = read(entry(name, b"x" * 600), entry(CONFIG, b"{}"), listing())
    assert names == [CONFIG]
    assert len(index.images) == 1


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"V"])
def test_only_files_are_blobs(kind: bytes) -> None:
    names, _ = read(entry(f"blobs/sha256/{HEX}", kind=kind), entry(CONFIG), listing())
    assert names == [CONFIG]


def test_a_name_longer_than_any_path_is_refused() -> None:
    with pytest.raises(ArchiveError, match="a name of 5000 bytes"):
        read(entry("n" * 5000), listing())
    with pytest.raises(ArchiveError, match="a name of 5000 bytes"):
        read(entry("a/layer.tar", kind=tarfile.SYMTYPE, link="n" * 5000), listing())


def test_the_number_of_members_kept_is_bounded() -> None:
    reader = ArchiveReader()
    with pytest.raises(ArchiveError, match="more than 20000"):
        for number in range(20_001):
            list(reader.feed(entry(f"{number}", kind=tarfile.SYMTYPE, link="x")))
    assert number == 20_000


def test_a_size_that_lies_breaks_the_archive() -> None:
    for size in (1, 1025, 5000):
        with pytest.raises(ArchiveError):
            read(entry(CONFIG, b"{" * 513, size=size), listing())


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"{}", b"3", b"null", b'["a"]', b"[{}]", b'[{"Config":3}]', b'[{"Config":"a","Layers":"b"}]',
     b'[{"Config":"a","Layers":[1]}]', b'[{"Config":"a","RepoTags":{}}]', b"[" * 100_000, b"\xff", b"1" * 5000,
     b'[{"Config":"/a"}]', b'[{"Config":"a","Layers":["../b"]}]'],
)  # fmt: skip
def test_a_manifest_json_of_another_shape_is_refused(document: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(entry("manifest.json", document))


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"null", b"{", b'{"manifests":{}}', b'{"manifests":[3]}', b'{"manifests":[{}]}', b"[" * 100_000,
     b'{"manifests":[{"digest":"sha256:x","size":1}]}', b'{"manifests":[{"mediaType":1,"digest":"a","size":1}]}',
     b'{"manifests":[{"digest":"sha256:%s","size":-1}]}' % HEX.encode()],
)  # fmt: skip
def test_an_index_json_of_another_shape_is_refused(document: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"index\.json"):
        read(entry("index.json", document), entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'))


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"imageLayoutVersion":2}', b'{"imageLayoutVersion":"2.0.0"}']
)
def test_an_oci_layout_of_another_version_is_refused(document: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"oci-layout|layout version"):
        read(entry("index.json", b'{"manifests":[]}'), entry("oci-layout", document))


def test_the_digest_of_a_blob_is_what_its_name_claims() -> None:
    assert claimed_digest(f"blobs/sha512/{'b' * 128}") == Digest.parse(f"sha512:{'b' * 128}")
    assert claimed_digest(f"{HEX}.tar") == claimed_digest(f"blobs/sha256/{HEX}") == Digest.parse(f"sha256:{HEX}")
    assert claimed_digest(f"{HEX}.txt") is None
    assert claimed_digest("a/layer.tar") is None


@given(st.text("./a\\\0\n", max_size=12))
def test_a_normalised_name_never_leads_out(name: str) -> None:
    try:
        parts = normalise(name).split("/")
    except ArchiveError:
        return
    assert not {".", ".."} & set(parts)
    assert parts == [""] or "" not in parts
    assert normalise("/".join(parts)) == "/".join(parts)


@given(st.binary(max_size=3000), st.integers(0, 10), st.integers(0, 8000))
def test_bytes_written_over_an_archive_never_crash_the_reader(noise: bytes, copies: int, at: int) -> None:
    stream = bytearray(make_tar([("b/layer.tar", b"1"), ("a/layer.tar", "../b/layer.tar"), (CONFIG, b"{}")]))
    for _ in range(copies):
        stream[at : at + len(noise)] = noise
        at += len(noise) + 512
    reader = ArchiveReader()
    try:
        list(reader.feed(bytes(stream)))
        reader.finish()
    except ArchiveError:
        return
    raise AssertionError("an archive without manifest.json is never whole")
