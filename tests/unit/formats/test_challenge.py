"""The grammar of `WWW-Authenticate`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.challenge import Challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push"'


@pytest.mark.parametrize(
    ("value", "challenges"),
    [
        ('Basic realm="rig"', [Challenge("basic", {"realm": "rig"})]),
        ("BASIC realm=rig", [Challenge("basic", {"realm": "rig"})]),
        ('Basic realm = "rig" , charset="UTF-8"', [Challenge("basic", {"realm": "rig", "charset": "UTF-8"})]),
        ("Negotiate", [Challenge("negotiate")]),
        ("Negotiate YWJj==", [Challenge("negotiate")]),
        ('Negotiate YWJj==, Basic realm="r"', [Challenge("negotiate"), Challenge("basic", {"realm": "r"})]),
        ('Negotiate abc, Basic realm="r"', [Challenge("negotiate"), Challenge("basic", {"realm": "r"})]),
        ('Negotiate, Basic realm="r"', [Challenge("negotiate"), Challenge("basic", {"realm": "r"})]),
        (
            'Bearer realm="a",error="x", Basic realm="b"',
            [Challenge("bearer", {"realm": "a", "error": "x"}), Challenge("basic", {"realm": "b"})],
        ),
        (
            'Basic realm="a \\"quoted\\" \\\\ one, with=signs"',
            [Challenge("basic", {"realm": 'a "quoted" \\ one, with=signs'})],
        ),
        ('Basic realm=""', [Challenge("basic", {"realm": ""})]),
        ('Basic realm="a", realm="b"', [Challenge("basic", {"realm": "a"})]),
        (', ,Basic realm="a",', [Challenge("basic", {"realm": "a"})]),
        ("", []),
        ('realm="a"', []),
        ('Basic realm="a', [Challenge("basic")]),
        ('Basic realm="a" ; "', [Challenge("basic")]),
    ],
)
def test_challenges_are_read(value: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(value) == challenges


def test_the_challenge_of_docker_hub_is_read() -> None:
    [challenge] = parse_challenges(HUB)
    assert challenge.scheme == "bearer"
    assert challenge.parameters == {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "repository:library/nginx:pull,push",
    }


def test_several_headers_are_read_in_order() -> None:
    assert [c.scheme for c in parse_challenges('Bearer realm="a"', "Negotiate", "(((", 'Basic realm="b"')] == [
        "bearer",
        "negotiate",
        "basic",
    ]


def test_a_value_of_no_sensible_length_is_left_aside() -> None:
    assert parse_challenges("Basic " * 10_000) == []


names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)


@given(
    st.lists(
        st.tuples(names, st.dictionaries(names, st.text(st.characters(codec="ascii")), min_size=1, max_size=4)),
        max_size=4,
    )
)
def test_whatever_is_written_by_the_grammar_is_read_back(written: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = [f"{scheme} " + ", ".join(f"{k}={quoted(v)}" for k, v in p.items()) for scheme, p in written]
    assert parse_challenges(", ".join(text)) == [Challenge(scheme, p) for scheme, p in written]


@given(st.text(st.sampled_from('Basic realm="\\,=; \t/'), max_size=60))
def test_nothing_makes_it_fail(value: str) -> None:
    parse_challenges(value)
