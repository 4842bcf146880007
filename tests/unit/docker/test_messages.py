"""Tests of k3dreg.docker.messages."""

from typing import Any

import pytest

from k3dreg.docker.image import ImageStore, PullProgress
from k3dreg.docker.messages import (
    PullTally,
    error_message,
    parse_image,
    parse_info,
    parse_version,
    readable,
    stream_error,
)
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError
from k3dreg.oci.platform import Platform

_HEX = "ab" * 32
_ID = f"sha256:{_HEX}"
_CONTAINERD = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]], "Driver": "overlayfs"}


@pytest.mark.parametrize(
    ("info", "version", "store"),
    [
        (_CONTAINERD, {}, ImageStore.CONTAINERD),
        # The containerd socket is told by engines with a classic store, too.
        ({"DriverStatus": [["Backing", "extfs"]], "Containerd": {"Address": "/x"}}, {}, ImageStore.CLASSIC),
        ({"DriverStatus": None}, {"Components": None}, ImageStore.CLASSIC),
        ({}, {"Components": [{"Name": "Podman Engine"}]}, ImageStore.PODMAN),
    ],
)
def test_the_image_store_is_recognised(info: dict[str, Any], version: dict[str, Any], store: ImageStore) -> None:
    assert parse_info(info, version, (1, 51)).store is store


def test_what_an_engine_does_not_tell_is_empty() -> None:
    info = parse_info({"Containerd": None}, {}, (1, 41))
    assert (info.id, info.version, info.root_dir, info.containerd_address, info.os_type) == ("", "", "", "", "linux")


def test_the_id_that_podman_makes_up_for_each_answer_is_none() -> None:
    assert parse_info({"ID": "one-of-many"}, {"Components": [{"Name": "Podman Engine"}]}, (1, 44)).id == ""


def test_the_engine_s_version_is_one_line_and_short() -> None:
    version = parse_info({}, {"Version": "28.5\n\x1b[2Jlistening on 0.0.0.0:1" + "x" * 1000}, (1, 51)).version
    assert version.isprintable()
    assert version.startswith("28.5 ")
    assert len(version) <= 64


def test_insecure_registries_are_those_that_settings_name() -> None:
    configs = {
        "docker.io": {"Name": "docker.io", "Secure": True},
        "Registry.corp:5000": {"Name": "registry.corp:5000", "Secure": False},
        "nonsense": None,
    }
    settings = {"IndexConfigs": configs, "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"]}
    assert parse_info({"RegistryConfig": settings}, {}, (1, 51)).insecure_registries == {"registry.corp:5000"}
    nothings: list[Any] = [None, [], {"IndexConfigs": None}]
    for nothing in nothings:
        assert parse_info({"RegistryConfig": nothing}, {}, (1, 51)).insecure_registries == frozenset()


def test_mirrors_are_those_that_settings_name() -> None:
    settings: Any = {"Mirrors": ["https://mirror.example/", None]}
    assert parse_info({"RegistryConfig": settings}, {}, (1, 51)).mirrors == ("https://mirror.example/",)
    nothings: list[Any] = [None, [], {"Mirrors": None}]
    for nothing in nothings:
        assert parse_info({"RegistryConfig": nothing}, {}, (1, 51)).mirrors == ()


def test_a_digest_that_podman_lists_as_a_tag_is_none() -> None:
    value = {"Id": _ID, "RepoTags": [f"h.io/app@{_ID}", "h.io/app:1"], "RepoDigests": [f"h.io/app@{_ID}"]}
    image = parse_image(value, ImageStore.PODMAN)
    assert (image.tags, image.repo_digests) == (("h.io/app:1",), (f"h.io/app@{_ID}",))


@pytest.mark.parametrize("identity", [_ID, _HEX])
def test_an_id_is_taken_with_and_without_its_algorithm(identity: str) -> None:
    assert parse_image({"Id": identity}, ImageStore.PODMAN).id == Digest.parse(_ID)


def test_an_image_without_a_complete_platform_is_no_error() -> None:
    value: dict[str, Any] = {
        "Id": _ID,
        "RepoTags": None,
        "RepoDigests": [],
        "RootFS": {},
        "Os": "",
        "Architecture": "",
        "Size": None,
    }
    image = parse_image(value, ImageStore.CONTAINERD)
    assert (image.diff_ids, image.platform, image.tags, image.size) == ((), None, (), 0)


def test_the_children_of_an_index_are_told_with_their_availability() -> None:
    child = {"mediaType": "m", "digest": _ID, "size": 3, "platform": {"os": "linux", "architecture": "arm64"}}
    value = {
        "Id": _ID,
        "Descriptor": {"mediaType": "i", "digest": _ID, "size": 9},
        "Manifests": [{"Descriptor": child, "Available": True, "Kind": "image"}, {"Descriptor": child}],
    }
    image = parse_image(value, ImageStore.CONTAINERD)
    assert image.descriptor is not None
    assert image.descriptor.size == 9
    assert [(c.available, c.kind) for c in image.children] == [(True, "image"), (False, "unknown")]
    assert image.children[0].descriptor.platform == Platform("linux", "arm64")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"Id": None},
        {"Id": "sha256:../../etc"},
        {"Id": _ID, "RootFS": {"Layers": ["x"]}},
        {"Id": _ID, "Descriptor": {"digest": 3}},
        {"Id": _ID, "Manifests": [{"Descriptor": None}]},
    ],
)
def test_an_image_that_does_not_parse_is_an_error_of_the_engine(value: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        parse_image(value, ImageStore.CLASSIC)


def test_names_that_stand_for_none_are_none() -> None:
    image = parse_image(
        {"Id": _ID, "RepoTags": ["<none>:<none>", "a:1"], "RepoDigests": ["<none>@<none>"]}, ImageStore.CLASSIC
    )
    assert (image.tags, image.repo_digests) == (("a:1",), ())


@pytest.mark.parametrize("text", ["", "1", "1.", "v1.51", "1.51.0", "1.x", "99999.1"])
def test_what_is_not_an_api_version_is_an_error(text: str) -> None:
    with pytest.raises(EngineError):
        parse_version(text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"message":"no such thing"}\n', "no such thing"),
        (b"client version 1.2 is too old\n", "client version 1.2 is too old"),
        (b"", ""),
        (b"[]", ""),
        (b'{"message":null}', ""),
        (b"\xff", "\ufffd"),
    ],
)
def test_the_message_of_an_error_answer_is_found(body: bytes, message: str) -> None:
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"status": "Downloading"}, None),
        ({"errorDetail": {"message": "new"}, "error": "old"}, "new"),
        ({"error": "old"}, "old"),
        ({"errorDetail": {}}, ""),
        ({"errorDetail": {"code": 1}, "error": "old"}, "old"),
    ],
)
def test_errors_inside_a_stream_are_found(message: dict[str, object], error: str | None) -> None:
    assert stream_error(message) == error


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("a\r\n  b\tc\x00d", "a b c d"),
        ("open /var/lib/docker/tmp/x: no such file", "open (a path): no such file"),
        ('Get "https://h.io/v2/n/a": refused', 'Get "https://h.io/v2/n/a": refused'),
        ("manifest for docker.io/library/a:1 not found", "manifest for docker.io/library/a:1 not found"),
        ("no such image: h.io:5000/n/a@sha256:00", "no such image: h.io:5000/n/a@sha256:00"),
        ("and/or 1/2", "and/or 1/2"),
        ("unknown: <HTML><body>x", "unknown: (an HTML page)"),
        ("x" * 5000, "x" * 1600 + "…"),
    ],
)
def test_words_of_an_engine_are_put_on_one_line_without_paths_and_pages(said: str, told: str) -> None:
    assert readable(said) == told


def test_a_pull_s_progress_is_the_sum_of_its_layers() -> None:
    tally = PullTally()
    told = [
        tally.add(message)
        for message in (
            {"status": "Pulling from a", "id": "1"},
            {"status": "Downloading", "progressDetail": {"current": 10, "total": 100}, "id": "x"},
            {"status": "Downloading", "progressDetail": {"current": 5, "total": 50}, "id": "y"},
            {"status": "Downloading", "progressDetail": {"current": 60, "total": 100}, "id": "x"},
            {"status": "Download complete", "progressDetail": {"hidecounts": True}, "id": "x"},
            {"status": "Extracting", "progressDetail": {"current": 3, "units": "s"}, "id": "x"},
        )
    ]
    assert [(p.current, p.total) for p in told if p] == [
        (0, 0),
        (10, 100),
        (15, 150),
        (65, 150),
        (105, 150),
        (105, 150),
    ]
    assert told[-1] == PullProgress("Extracting", 105, 150)


def test_messages_of_other_kinds_are_no_progress() -> None:
    assert PullTally().add({"aux": {"ID": _ID}}) is None
