"""Tests of k3dreg.formats.tar_stream, with Python's tarfile as the oracle."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.tar_stream import LARGEST_EXTENSION, EntryContent, EntryEnd, EntryKind, TarEntry, TarReader
from k3dreg.oci.errors import ArchiveError

FORMATS: dict[str, Literal[0, 1, 2]] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
MARKER = bytes(1024)
ERROR = b'{"errorDetail":{"message":"open layer: no space left"},"error":"open layer: no space left"}\r\n'
SAID = "Docker broke off the archive: open layer: no space left"

Read = list[tuple[TarEntry, bytes]]


def read_all(reader: TarReader, data: bytes, cuts: list[int] | None = None) -> Read:
    """The entries with their content; checks that each begins, has its bytes and ends."""
    found: Read = []
    content: bytearray | None = None
    edges = [0, *sorted(cuts or []), len(data)]
    for start, stop in itertools.pairwise(edges):
        for event in reader.feed(data[start:stop]):
            if isinstance(event, TarEntry):
                assert content is None
                content = bytearray()
                found.append((event, b""))
            elif isinstance(event, EntryContent):
                assert content is not None
                assert len(event.data)
                content += event.data
            else:
                assert isinstance(event, EntryEnd)
                assert content is not None
                assert len(content) == found[-1][0].size
                found[-1] = (found[-1][0], bytes(content))
                content = None
    return found


def parse(data: bytes, cuts: list[int] | None = None) -> Read:
    reader = TarReader()
    found = read_all(reader, data, cuts)
    reader.close()
    assert reader.complete
    return found


def header(name: str = "a", size: int = 0, kind: bytes = b"0", form: str = "gnu", **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(FORMATS[form], "utf-8", "surrogateescape")


def file(name: str, content: bytes) -> bytes:
    return header(name, len(content)) + content + bytes(-len(content) % 512)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header("extends", len(records), kind) + records + bytes(-len(records) % 512)


def resum(block: bytearray) -> bytes:
    """The block with the right checksum."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


_KINDS = {
    tarfile.REGTYPE: EntryKind.FILE,
    tarfile.CONTTYPE: EntryKind.FILE,
    tarfile.LNKTYPE: EntryKind.HARD_LINK,
    tarfile.SYMTYPE: EntryKind.SYMLINK,
    tarfile.DIRTYPE: EntryKind.DIRECTORY,
    tarfile.FIFOTYPE: EntryKind.FIFO,
    tarfile.CHRTYPE: EntryKind.DEVICE,
    tarfile.BLKTYPE: EntryKind.DEVICE,
}
_PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=90)
_NAME = st.lists(_PART, min_size=1, max_size=5).map("/".join).filter(lambda name: not name.startswith("/"))
_ENTRY = st.tuples(_NAME, st.sampled_from(sorted(_KINDS)), st.binary(max_size=1200), _NAME, st.integers(0, 0o7777))


@given(st.sampled_from(sorted(FORMATS)), st.lists(_ENTRY, max_size=5), st.data())
def test_entries_are_those_that_tarfile_reads_wherever_the_bytes_are_cut(
    form: str, entries: list[tuple[str, bytes, bytes, str, int]], data: st.DataObject
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form]) as archive:
        for name, kind, content, link, mode in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            info.size = len(content) if _KINDS[kind] is EntryKind.FILE else 0
            info.linkname = link if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
            try:
                info.tobuf(FORMATS[form], "utf-8")
            except ValueError:
                continue  # too long for ustar
            archive.addfile(info, io.BytesIO(content))
    stream = out.getvalue()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))
    with tarfile.open(fileobj=io.BytesIO(stream), encoding="utf-8") as archive:
        expected = []
        for member in archive.getmembers():
            extracted = archive.extractfile(member) if member.isreg() else None
            body = extracted.read() if extracted is not None else b""
            # tarfile drops a slash at a name's end, which says nothing
            expected.append((member.name, member.size, _KINDS[member.type], member.linkname, member.mode, body))
    found = [
        (entry.name.rstrip("/"), entry.size, entry.kind, entry.link, entry.mode, content)
        for entry, content in parse(stream, cuts)
    ]
    assert found == expected


def test_one_byte_at_a_time_gives_the_same() -> None:
    stream = file("n" * 150, b"1" * 700) + file("b", b"") + MARKER
    assert parse(stream, list(range(len(stream)))) == parse(stream)


def test_content_is_not_copied() -> None:
    data = file("a", b"x" * 5000)
    views = [event.data for event in TarReader().feed(data) if isinstance(event, EntryContent)]
    assert [(view.obj is data, len(view)) for view in views] == [(True, 5000)]


@pytest.mark.parametrize("form", ["gnu", "pax"])
@pytest.mark.parametrize("size", [8 * 2**30 - 1, 8 * 2**30, 2**40, 2**62])
def test_sizes_of_8_gib_and_more_are_read(form: str, size: int) -> None:
    if form == "pax":  # tarfile would write it as an extended header, too, so all of it is fed
        info = tarfile.TarInfo("big")
        info.size = size
        data = info.tobuf(tarfile.PAX_FORMAT)
    else:
        data = header("big", size)
    [entry] = TarReader().feed(data)
    assert isinstance(entry, TarEntry)
    assert (entry.name, entry.size) == ("big", size)


def test_an_old_header_without_magic_is_read() -> None:
    block = bytearray(header("dir/", 0, b"\0"))
    block[257:] = bytes(255)
    block[345:350] = b"noise"  # not a prefix: there is no ustar magic
    assert [entry.kind for entry, _ in parse(resum(block) + MARKER)] == [EntryKind.DIRECTORY]
    assert [entry.name for entry, _ in parse(resum(block) + MARKER)] == ["dir/"]


def test_a_checksum_of_signed_bytes_is_right_too() -> None:
    block = bytearray(header("\xe9\xe9"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)
    assert [entry.name for entry, _ in parse(bytes(block) + MARKER)] == ["\xe9\xe9"]


@pytest.mark.parametrize("at", [0, 100, 124, 156, 300, 511])
def test_a_header_with_one_wrong_byte_is_refused(at: int) -> None:
    block = bytearray(header("name", 5))
    block[at] ^= 1
    with pytest.raises(ArchiveError):
        parse(bytes(block) + b"12345" + bytes(507) + MARKER)


@pytest.mark.parametrize(
    "size",
    [
        b"+0000000005\0",
        b"-1\0\0\0\0\0\0\0\0\0\0",
        b"0x5\0\0\0\0\0\0\0\0\0",
        b"\xff" * 12,
        b"\x80" + b"\xff" * 11,
        b"\x81" + bytes(10) + b"\5",
    ],
)
def test_a_size_that_is_no_number_of_bytes_is_refused(size: bytes) -> None:
    block = bytearray(header("name", 5))
    block[124:136] = size
    with pytest.raises(ArchiveError, match="number"):
        list(TarReader().feed(resum(block)))


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    [(entry, _)] = parse(header("caf\udce9") + MARKER)
    assert (entry.raw_name, entry.name) == (b"caf\xe9", "caf\udce9")


def test_a_directory_has_no_content_whatever_its_size_says() -> None:
    assert [entry.size for entry, _ in parse(header("d/", 700, b"5") + MARKER)] == [0]


def test_the_content_of_an_unknown_kind_is_passed_over() -> None:
    found = parse(header("v", 600, b"V") + b"x" * 600 + bytes(424) + file("a", b"1") + MARKER)
    assert [(entry.kind, entry.name) for entry, _ in found] == [(EntryKind.OTHER, "v"), (EntryKind.FILE, "a")]


def test_sparse_files_are_refused_in_both_formats() -> None:
    for data in (header("s", 0, b"S"), pax(b"22 GNU.sparse.major=1\n")):
        with pytest.raises(ArchiveError, match="sparse"):
            list(TarReader().feed(data))


def test_pax_records_are_for_the_next_entry_only_and_global_ones_for_all() -> None:
    stream = (
        pax(b"12 path=all\n", b"g")
        + pax(b"12 path=one\n")
        + file("a", b"")
        + file("b", b"")
        + pax(b"8 path=\n")  # takes the global one back
        + file("c", b"")
    )
    assert [entry.name for entry, _ in parse(stream + MARKER)] == ["one", "all", "c"]


@pytest.mark.parametrize(
    "records",
    [b"path=a\n", b"99 path=a\n", b"10 path=aa", b"9 patha\n\n", b"5 =a\n", b"0 \n", b"-9 path=a\n", b"12 path=a\0b\n"],
)
def test_pax_records_that_do_not_hold_together_are_refused(records: bytes) -> None:
    with pytest.raises(ArchiveError):
        list(TarReader().feed(pax(records) + file("a", b"")))


@pytest.mark.parametrize("value", [b"-1", b"1e3", b"", b"9" * 19, b"9" * 5000, b" 1"])
def test_a_pax_size_that_is_no_number_of_bytes_is_refused(value: bytes) -> None:
    length = len(value) + 7
    record = b"%d size=%s\n" % (length + len(str(length + len(str(length)))), value)
    if value:
        with pytest.raises(ArchiveError, match="size"):
            list(TarReader().feed(pax(record) + file("a", b"")))
    else:
        assert [entry.size for entry, _ in parse(pax(record) + file("a", b"1") + MARKER)] == [1]


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_extension_larger_than_the_limit_is_refused_before_it_is_kept(kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="bytes"):
        list(TarReader().feed(header("long", LARGEST_EXTENSION + 1, kind)))
    assert list(TarReader().feed(header("long", LARGEST_EXTENSION, kind))) == []


def test_only_two_blocks_of_zeros_make_an_archive_complete() -> None:
    reader = TarReader()
    for piece, complete in ((file("a", b"1"), False), (bytes(512), False), (bytes(511), False), (b"\0", True)):
        read_all(reader, piece)
        assert reader.complete is complete
    read_all(reader, bytes(8192))
    reader.close()
    assert reader.complete


@pytest.mark.parametrize("stream", [b"", file("a", b"1"), file("a", b"1") + bytes(512)])
def test_an_end_between_entries_is_no_error_and_not_complete(stream: bytes) -> None:
    reader = TarReader()
    read_all(reader, stream)
    reader.close()
    assert not reader.complete


def test_an_end_anywhere_else_is_an_error() -> None:
    stream = pax(b"14 path=other\n") + file("n" * 150, b"1" * 700) + file("b", b"22")
    borders = {0, len(stream) - len(file("b", b"22")), len(stream)}
    for end in range(len(stream)):
        reader = TarReader()
        list(reader.feed(stream[:end]))
        if end in borders:
            reader.close()
        else:
            with pytest.raises(ArchiveError):
                reader.close()


def test_an_end_inside_an_entry_says_in_which_and_how_early() -> None:
    reader = TarReader()
    list(reader.feed(file("blobs/x", b"1" * 100)[:572]))
    with pytest.raises(ArchiveError, match=r"in the middle of 'blobs/x', 40 bytes early$"):
        reader.close()


@pytest.mark.parametrize(
    "before",
    [b"", file("a", b"1"), file("a", b"1" * 600)[:-424], file("a", b"1") + bytes(512), file("a", b"1") + MARKER,
     file("a", b"1") + bytes(10240)],
    ids=["at the start", "between entries", "for padding", "in the marker", "after the marker", "after zeros"],
)  # fmt: skip
@pytest.mark.parametrize("message", ["open layer: no space left", "open layer: no space left" + " " * 3000])
def test_dockers_error_behind_the_tar_is_told_in_its_own_words(before: bytes, message: str) -> None:
    error = json.dumps({"errorDetail": {"message": message}, "error": message}).encode() + b"\r\n"
    for cuts in ([], [len(before)], list(range(len(before), len(before + error)))):
        reader = TarReader()
        read_all(reader, before + error, cuts)
        with pytest.raises(ArchiveError) as caught:
            reader.close()
        assert str(caught.value) == SAID
        assert not reader.complete


@pytest.mark.parametrize("cuts", [[], [600], list(range(512, 700))])
def test_dockers_error_in_place_of_content_is_told_too(cuts: list[int]) -> None:
    reader = TarReader()
    read_all(reader, header("a", 5000) + b"content" + ERROR, cuts)
    with pytest.raises(ArchiveError, match=r"'a', \d+ bytes early: Docker says: open layer: no space left$"):
        reader.close()


def test_an_error_message_in_an_earlier_entry_is_not_taken_for_dockers_last_words() -> None:
    reader = TarReader()
    first = file("a", ERROR)
    read_all(reader, first + header("b", 100), [512 + len(ERROR) - 2])
    with pytest.raises(ArchiveError, match=r"'b', 100 bytes early$"):
        reader.close()


def test_what_docker_says_is_shown_as_one_short_line() -> None:
    error = json.dumps({"errorDetail": {"message": "a\n\x1b[31m\tb" + "x" * 1000}}).encode()
    reader = TarReader()
    list(reader.feed(error))
    with pytest.raises(ArchiveError) as caught:
        reader.close()
    assert "archive: a [31m bxxx" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "garbage",
    [b"<html>" + b"x" * 600, b"{" * 100_000, b"x" * 512, bytes(512) + b"x" * 512, MARKER + b"x", MARKER + b"{x"],
)
def test_garbage_is_shown(garbage: bytes) -> None:
    reader = TarReader()
    with pytest.raises(ArchiveError, match=r"x|\{"):
        list(reader.feed(garbage))
        reader.close()


def test_an_entry_after_a_block_of_zeros_is_refused() -> None:
    with pytest.raises(ArchiveError, match="zeros"):
        list(TarReader().feed(bytes(512) + file("a", b"1")))


def test_a_longer_name_for_no_entry_is_refused() -> None:
    extended = header("n" * 150)[:1024]
    with pytest.raises(ArchiveError):
        list(TarReader().feed(extended + MARKER))


def test_a_damaged_archive_stays_damaged() -> None:
    reader = TarReader()
    with pytest.raises(ArchiveError):
        list(reader.feed(b"x" * 512))
    with pytest.raises(ArchiveError):
        list(reader.feed(file("a", b"1")))
    with pytest.raises(ArchiveError):
        reader.close()
    assert not reader.complete
