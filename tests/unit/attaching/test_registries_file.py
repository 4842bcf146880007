"""k3dreg's endpoint in registries.yaml: added beside everything that is there, and removed again, byte for byte."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.attaching.attaching_errors import CannotAttach
from k3dreg.attaching.registries_file import add_endpoint, marked_endpoints, mirrored_hosts, remove_endpoint

URL = "http://k3dreg:5000"

# What k3d 5.9 writes for a registry that it creates, in Go's own form.
OF_K3D = """\
mirrors:
    k3d-registry.localhost:5000:
        endpoint:
            - http://k3d-registry.localhost:5000
    k3d-registry.localhost:5005:
        endpoint:
            - http://k3d-registry.localhost:5000
configs: {}
auths: {}
"""
BY_HAND = """\
---
# The company's mirrors
mirrors: # all of them
  docker.io:   # slow
    endpoint: ["https://mirror.example.com", https://second.example.com]
    rewrite:
      "^library/(.*)": "hub/$1"
  '*':
    endpoint:
    - "https://any.example.com" # the cache

configs:
  "mirror.example.com":
    auth:
      username: anna
      password: |
        mirrors:
          of: no concern
    tls: {insecure_skip_verify: true}
"""
FILES = [
    "",
    "# nothing yet\n",
    "mirrors:\n",
    "mirrors: {}\n",
    "mirrors: {} # none\nconfigs: {}\n",
    "configs:\n  a:\n    auth: {username: x}",
    "mirrors:\n# of all\n  '*': {}\n",
    'mirrors:\n  "*":\n    rewrite: {}\n',
    'mirrors:\n  "*":\n    endpoint: []\n    rewrite: {}\n',
    'mirrors:\n  "*":\n    endpoint:\n',
    'mirrors:\n  "*":\n    endpoint: ~\n  docker.io:\n',
    'mirrors:\n  "*":\n    endpoint: [https://a]\n',
    'mirrors:\n  "*":\r\n    endpoint:\r\n      - https://a\r\n',
    OF_K3D,
    BY_HAND,
]


@pytest.mark.parametrize("text", FILES)
def test_the_endpoint_is_first_and_nothing_else_changes(text: str) -> None:
    after = yaml.safe_load(add_endpoint(text, URL))
    before = yaml.safe_load(text) or {}
    mirrors = before.get("mirrors") or {}
    every = mirrors.get("*") or {}
    expected = {**every, "endpoint": [URL, *(every.get("endpoint") or [])]}
    assert after == {**before, "mirrors": {**mirrors, "*": expected}}


@pytest.mark.parametrize("text", FILES)
def test_the_file_is_as_it_was_when_the_endpoint_is_removed(text: str) -> None:
    attached = add_endpoint(text, URL)
    assert marked_endpoints(attached) == (URL,)
    assert remove_endpoint(attached) == text
    assert marked_endpoints(text) == ()
    assert remove_endpoint(text) == text


@pytest.mark.parametrize("text", FILES)
def test_twice_is_once_and_another_address_replaces_the_first(text: str) -> None:
    attached = add_endpoint(text, URL)
    assert add_endpoint(attached, URL) == attached
    assert add_endpoint(add_endpoint(text, "http://172.18.0.1:5000"), URL) == attached


def test_what_the_user_changes_meanwhile_stays() -> None:
    attached = add_endpoint(OF_K3D, URL).replace("configs: {}", "configs: {}  # mine")
    added = attached.replace("mirrors:\n", "mirrors:\n    ghcr.io:\n        endpoint: [https://x]\n", 1)
    left = yaml.safe_load(remove_endpoint(added))
    assert left["mirrors"]["ghcr.io"] == {"endpoint": ["https://x"]}
    assert "# mine" in remove_endpoint(added)


@pytest.mark.parametrize("endpoint", [f"[{URL}]", f'["{URL}", https://b]', f"\n    - {URL}", f'\n      - "{URL}"'])
def test_a_file_that_has_it_already_is_left_as_it_is(endpoint: str) -> None:
    text = f'mirrors:\n  "*":\n    endpoint: {endpoint}\n'.replace(": \n", ":\n")
    assert add_endpoint(text, URL) == text
    assert remove_endpoint(text) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('mirrors: {"*": {}}\n', "mirrors"),
        ('mirrors:\n\t"*":\n', '"*"'),
        ("mirrors: &all\n  x:\n", "&all"),
        ('mirrors:\n  "*": *all\n', "*all"),
        ('mirrors:\n  "*": &a\n    endpoint: [x]\n', "&a"),
        ("mirrors:\n  <<: {x: {}}\n", "<<"),
        ('mirrors:\n  "*":\n  - x\n', "- x"),
        ('mirrors:\n  "*":\n    endpoint: ["a#b"]\n  "*":\n', '"*"'),
        ('mirrors:\n  "*":\n    endpoint: [a,\n      b]\n', "endpoint"),
        ('mirrors:\n  "*":\n    endpoint:\n      - [a]\n', "- [a]"),
        ('mirrors:\n  "*":\n    endpoint:\n      - a\n        b\n', "- a"),
        ('mirrors:\n  "*":\n    "endpoint\\x41": a\n', "endpoint"),
        ("mirrors:\n---\nmirrors:\n", "---"),
        ("mirrors\n", "mirrors"),
        ("{}\n", "{}"),
        ("- mirrors:\n", "- mirrors"),
        ("mirrors:\nmirrors:\n", "mirrors"),
    ],
)
def test_a_file_in_another_form_is_refused_with_the_line(text: str, named: str) -> None:
    with pytest.raises(CannotAttach, match="cannot change safely") as refused:
        add_endpoint(text, URL)
    assert named in str(refused.value)


def test_registries_with_mirrors_of_their_own_are_told() -> None:
    assert mirrored_hosts(BY_HAND) == ("docker.io",)
    assert mirrored_hosts(add_endpoint(OF_K3D, URL)) == ("k3d-registry.localhost:5000", "k3d-registry.localhost:5005")
    assert mirrored_hosts("configs: {}\n") == ()


_URLS = st.sampled_from(["https://a", "http://b:5000/v2", "https://c.example.com"])
_MIRRORS = st.fixed_dictionaries(
    {},
    optional={
        "endpoint": st.lists(_URLS, unique=True, max_size=3) | st.none(),
        "rewrite": st.dictionaries(st.sampled_from(["^a/(.*)", "b"]), st.sampled_from(["x/$1", "y"]), max_size=2),
    },
)
_DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "mirrors": st.dictionaries(st.sampled_from(["*", "docker.io", "k3d-r:5000", "10.0.0.1"]), _MIRRORS | st.none()),
        "configs": st.dictionaries(
            st.sampled_from(["a", "b:5000"]), st.fixed_dictionaries({"auth": st.just({"username": "x"})})
        ),
        "auths": st.just({}),
    },
)


@given(_DOCUMENTS, st.sampled_from([2, 4]), st.sampled_from([False, None]))
def test_every_file_that_a_program_writes_is_merged_or_refused(
    document: dict[str, object], indent: int, flow: bool | None
) -> None:
    text = yaml.safe_dump(document, indent=indent, default_flow_style=flow, sort_keys=False)
    try:
        attached = add_endpoint(text, URL)
    except CannotAttach:
        assert flow is None or not document  # some values in one line are refused; no file in blocks is
        return
    mirrors = document.get("mirrors") or {}
    assert isinstance(mirrors, dict)
    every = mirrors.get("*") or {}
    expected = {**every, "endpoint": [URL, *(every.get("endpoint") or [])]}
    assert yaml.safe_load(attached) == {**document, "mirrors": {**mirrors, "*": expected}}
    assert remove_endpoint(attached) == text


@given(st.text(alphabet="\"':-[]{}&#*,/ \n\tmirosendpt", max_size=60))
def test_what_is_changed_still_parses_as_it_did(noise: str) -> None:
    for text in (noise, f"mirrors:\n{noise}", f'mirrors:\n  "*":\n{noise}', f'mirrors:\n  "*":\n    endpoint:{noise}'):
        try:
            before = yaml.safe_load(text)
            attached = add_endpoint(text, URL)
        except (yaml.YAMLError, CannotAttach):
            continue
        after = yaml.safe_load(attached)
        assert after["mirrors"]["*"]["endpoint"][0] == URL
        del after["mirrors"]["*"]["endpoint"][0]
        for key, value in (before or {}).items():
            assert key == "mirrors" or after[key] == value
        assert remove_endpoint(attached) == text or not text.strip()
