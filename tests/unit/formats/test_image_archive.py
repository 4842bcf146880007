"""Tests of k3dreg.formats.image_archive: what engines write."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.image_archive import ArchiveIndex, ArchiveReader, BlobBegin, BlobData, BlobEnd, Layout
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ArchiveError
from tests.fakes.images import make_tar

Entries = list[tuple[str, bytes | str | None]]

# `docker save` of "FROM scratch, ADD a.txt, ADD b.txt, ADD a.txt" built on 20.10.24, 26.1.5 and 28.5.2,
# on both stores; gzipped.
DATA = Path(__file__).parents[2] / "data" / "archives"
ERROR = b'{"errorDetail":{"message":"layer not found"},"error":"layer not found"}\r\n'

CONFIG = b'{"rootfs":{}}'
FIRST, SECOND = b"first layer" * 100, b"second"
MANIFEST = b'{"schemaVersion":2}'
OCI_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def path_of(data: bytes) -> str:
    return f"blobs/sha256/{hex_of(data)}"


def entry_of(data: bytes, **annotations: str) -> dict[str, object]:
    """A root in index.json."""
    digest = str(Digest.of(data))
    return {"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": len(data), "annotations": annotations}


def oci_entries(index: object = None, images: object = None) -> Entries:
    """As the classic store of Engine 25 and later writes them; a null document is left out."""
    if index is None:
        index = {"schemaVersion": 2, "manifests": [entry_of(MANIFEST)]}
    if images is None:
        layers = [path_of(FIRST), path_of(SECOND), path_of(FIRST)]
        images = [{"Config": path_of(CONFIG), "RepoTags": ["a:1"], "Layers": layers, "LayerSources": {}}]
    return [
        ("blobs/", None),
        ("blobs/sha256/", None),
        *sorted((path_of(blob), blob) for blob in (CONFIG, FIRST, SECOND, MANIFEST)),
        ("index.json", json.dumps(index).encode()),
        ("manifest.json", json.dumps(images).encode()),
        ("oci-layout", OCI_LAYOUT),
        ("repositories", b"{}"),
    ]


def legacy_entries() -> Entries:
    """As Engine 20.10 to 24 writes them: the first of the repeated layers comes as a link, before its target."""
    listed = {"Config": f"{hex_of(CONFIG)}.json", "RepoTags": None, "Layers": [f"{d}/layer.tar" for d in "bca"]}
    entries: Entries = []
    for directory, layer in (("a", "../b/layer.tar"), ("b", FIRST), ("c", SECOND)):
        entries += [(f"{directory}/", None), (f"{directory}/VERSION", b"1.0"), (f"{directory}/json", b"{}")]
        entries.append((f"{directory}/layer.tar", layer))
    return [*entries, (f"{hex_of(CONFIG)}.json", CONFIG), ("manifest.json", json.dumps([listed]).encode())]


def podman_entries() -> Entries:
    first, second = f"{hex_of(FIRST)}.tar", f"{hex_of(SECOND)}.tar"
    listed = {"Config": f"{hex_of(CONFIG)}.json", "RepoTags": [], "Layers": [first, second, first]}
    return [
        (first, FIRST),
        ("a/VERSION", b"1.0"),
        ("a/layer.tar", f"../{first}"),
        ("a/json", b"{}"),
        (second, SECOND),
        (f"{hex_of(CONFIG)}.json", CONFIG),
        ("repositories", b"{}"),
        ("manifest.json", json.dumps([listed]).encode()),
    ]


LAYOUTS = {"oci": oci_entries, "legacy": legacy_entries, "podman": podman_entries}


def read_all(data: bytes, cuts: list[int] | None = None) -> tuple[dict[str, tuple[Digest | None, bytes]], ArchiveIndex]:
    """The blobs by name, with the digest their name claims, and the index; checks the order of events."""
    reader = ArchiveReader()
    blobs: dict[str, tuple[Digest | None, bytes]] = {}
    begun: BlobBegin | None = None
    content = bytearray()
    for start, stop in itertools.pairwise([0, *sorted(cuts or []), len(data)]):
        for event in reader.feed(data[start:stop]):
            if isinstance(event, BlobBegin):
                assert begun is None
                assert event.name not in blobs
                begun = event
                content.clear()
            elif isinstance(event, BlobData):
                assert begun is not None
                content += event.data
            else:
                assert isinstance(event, BlobEnd)
                assert begun is not None
                assert len(content) == begun.size
                blobs[begun.name] = (begun.digest, bytes(content))
                begun = None
    return blobs, reader.finish()


@pytest.mark.parametrize("engine", sorted(path.name for path in DATA.iterdir()))
def test_archives_recorded_from_real_engines_are_read(engine: str) -> None:
    blobs, index = read_all(gzip.decompress((DATA / engine).read_bytes()))
    for digest, content in blobs.values():
        assert digest in (None, Digest.of(content))
    [image] = index.images
    assert image.tags == ("k3dreg-tarprobe:1",)
    config = json.loads(blobs[image.config][1])
    layers = [blobs[name][1] for name in image.layers]
    if "classic" in engine or "docker20" in engine:  # the third layer is the first again
        assert [str(Digest.of(layer)) for layer in layers] == config["rootfs"]["diff_ids"]
        assert [layers.index(layer) for layer in layers] == [0, 1, 0]
    else:
        assert [str(Digest.of(gzip.decompress(layer))) for layer in layers] == config["rootfs"]["diff_ids"]
    if "docker20" in engine:
        assert (index.layout, index.roots) == (Layout.DOCKER, ())
    else:
        assert index.layout is Layout.OCI
        [root] = index.roots
        manifest = json.loads(next(content for digest, content in blobs.values() if digest == root.digest))
        assert manifest["config"]["digest"] == str(Digest.of(blobs[image.config][1]))
        assert root.size == len(blobs[f"blobs/sha256/{root.digest.hex}"][1])


def test_an_oci_archive_gives_blobs_roots_and_images() -> None:
    blobs, index = read_all(make_tar(oci_entries()))
    assert blobs == {path_of(blob): (Digest.of(blob), blob) for blob in (CONFIG, FIRST, SECOND, MANIFEST)}
    assert index.layout is Layout.OCI
    assert [root.digest for root in index.roots] == [Digest.of(MANIFEST)]
    [image] = index.images
    assert (image.config, image.tags) == (path_of(CONFIG), ("a:1",))
    assert image.layers == (path_of(FIRST), path_of(SECOND), path_of(FIRST))


def test_a_legacy_archive_gives_layers_without_digest_and_links_resolved() -> None:
    blobs, index = read_all(make_tar(legacy_entries()))
    assert blobs == {
        "b/layer.tar": (None, FIRST),
        "c/layer.tar": (None, SECOND),
        f"{hex_of(CONFIG)}.json": (Digest.of(CONFIG), CONFIG),
    }
    assert (index.layout, index.roots) == (Layout.DOCKER, ())
    [image] = index.images
    assert image.layers == ("b/layer.tar", "c/layer.tar", "b/layer.tar")
    assert (image.config, image.tags) == (f"{hex_of(CONFIG)}.json", ())


def test_a_podman_archive_gives_layers_by_the_diff_id_in_their_name() -> None:
    blobs, index = read_all(make_tar(podman_entries()))
    assert blobs[f"{hex_of(FIRST)}.tar"] == (Digest.of(FIRST), FIRST)
    [image] = index.images
    assert image.layers == (f"{hex_of(FIRST)}.tar", f"{hex_of(SECOND)}.tar", f"{hex_of(FIRST)}.tar")


def test_a_podman_image_may_be_listed_by_its_links() -> None:
    listed = [{"Config": f"{hex_of(CONFIG)}.json", "Layers": ["./a/layer.tar"]}]
    _, index = read_all(make_tar([*podman_entries()[:-1], ("manifest.json", json.dumps(listed).encode())]))
    assert index.images[0].layers == (f"{hex_of(FIRST)}.tar",)


@given(st.sampled_from(sorted(LAYOUTS)), st.data())
def test_the_meaning_is_the_same_wherever_the_bytes_are_cut(layout: str, data: st.DataObject) -> None:
    stream = make_tar(LAYOUTS[layout]())
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    assert read_all(stream, cuts) == read_all(stream)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_no_part_of_an_archive_is_a_whole_one(layout: str) -> None:
    stream = make_tar(LAYOUTS[layout]())
    for end in [*range(0, len(stream), 64), *range(len(stream) - 64, len(stream))]:
        with pytest.raises(ArchiveError):
            read_all(stream[:end])
    read_all(stream)


def test_an_oci_archive_without_its_last_documents_is_not_whole_whatever_its_end_says() -> None:
    entries = oci_entries()
    for count in range(len(entries) - 1):  # `repositories` is not always there
        with pytest.raises(ArchiveError, match=r"has no (index\.json|oci-layout|manifest\.json)"):
            read_all(make_tar(entries[:count]))
    read_all(make_tar(entries[:-1]))


def test_blobs_and_a_manifest_json_alone_are_no_whole_archive() -> None:
    entries = [entry for entry in oci_entries() if entry[0] not in ("index.json", "oci-layout")]
    with pytest.raises(ArchiveError, match=r"has no index\.json"):
        read_all(make_tar(entries))


@pytest.mark.parametrize("layout", ["legacy", "podman"])
def test_an_archive_without_manifest_json_is_not_whole_whatever_its_end_says(layout: str) -> None:
    entries = LAYOUTS[layout]()
    for count in range(len(entries)):
        with pytest.raises(ArchiveError, match=r"has no manifest\.json"):
            read_all(make_tar(entries[:count]))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_dockers_error_behind_any_entry_is_told(layout: str) -> None:
    entries = LAYOUTS[layout]()
    for count in range(len(entries) + 1):
        part = make_tar(entries[:count])
        for broken in (part[:-1024] + ERROR, part + ERROR):
            with pytest.raises(ArchiveError, match="layer not found"):
                read_all(broken)


@pytest.mark.parametrize("layout", ["legacy", "podman"])
def test_a_layer_that_is_listed_and_missing_makes_an_archive_wrong(layout: str) -> None:
    entries = LAYOUTS[layout]()
    for missing in (name for name, content in entries if content in (FIRST, SECOND, CONFIG)):
        with pytest.raises(ArchiveError, match="lacks"):
            read_all(make_tar([entry for entry in entries if entry[0] != missing]))


def test_the_containerd_store_may_list_blobs_that_it_does_not_hold() -> None:
    _, index = read_all(make_tar([entry for entry in oci_entries() if entry[0] != path_of(SECOND)]))
    assert path_of(SECOND) in index.images[0].layers


def test_an_oci_archive_needs_no_manifest_json() -> None:
    _, index = read_all(make_tar([entry for entry in oci_entries() if entry[0] != "manifest.json"]))
    assert (len(index.roots), index.images) == (1, ())


def test_roots_come_once_each_in_order_and_without_referrers() -> None:
    manifests = [
        entry_of(b"2", **{"org.opencontainers.image.ref.name": "1"}),
        entry_of(b"1"),
        entry_of(b"2", **{"org.opencontainers.image.ref.name": "2"}),
        entry_of(b"3", **{"io.containerd.manifest.subject": str(Digest.of(b"1"))}),
    ]
    _, index = read_all(make_tar(oci_entries(index={"manifests": manifests})))
    assert [root.digest for root in index.roots] == [Digest.of(b"2"), Digest.of(b"1")]


def test_an_index_may_be_null_as_engine_25_0_0_writes_it_for_untagged_images() -> None:
    _, index = read_all(make_tar(oci_entries(index={"schemaVersion": 2, "manifests": None})))
    assert (index.roots, len(index.images)) == ((), 1)
