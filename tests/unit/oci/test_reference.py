"""Names of images, as Docker and users write them."""

from __future__ import annotations

import pytest

from k3dreg.oci.errors import InvalidName
from k3dreg.oci.reference import Repository, split_name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nginx", ("nginx", None, None)),
        ("nginx:1.27", ("nginx", "1.27", None)),
        ("h:5000/app", ("h:5000/app", None, None)),
        ("h:5000/app:t", ("h:5000/app", "t", None)),
        ("h:5000/app:t@sha256:12", ("h:5000/app", "t", "sha256:12")),
        ("app@sha256:12", ("app", None, "sha256:12")),
        ("app:@", ("app", "", "")),
    ],
)
def test_a_name_is_split_at_tag_and_digest(text: str, parts: tuple[str, str | None, str | None]) -> None:
    assert split_name(text) == parts


@pytest.mark.parametrize(
    ("name", "registry", "path"),
    [
        ("nginx", None, "nginx"),
        ("me/app", None, "me/app"),
        ("docker.io/nginx", "docker.io", "library/nginx"),
        ("ghcr.io/team/app", "ghcr.io", "team/app"),
        ("h:5000/app", "h:5000", "app"),
        ("localhost/app", "localhost", "app"),
        ("[::1]:5000/app", "[::1]:5000", "app"),
    ],
)
def test_the_first_part_of_a_name_is_a_registry_by_dockers_rule(name: str, registry: str | None, path: str) -> None:
    assert Repository.of_name(name) == Repository(registry, path)


@pytest.mark.parametrize("name", ["", "UPPER", "a_b.c/app", "h:5000", "h:5000/", "<none>"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        Repository.of_name(name)


def test_a_path_with_an_underscore_in_front_names_no_other_registry() -> None:
    assert Repository(None, "a_b.c/app").in_path is None
    assert Repository(None, "ghcr.io/team/app").in_path == Repository("ghcr.io", "team/app")
    assert Repository("h:5000", "ghcr.io/team/app").in_path is None
