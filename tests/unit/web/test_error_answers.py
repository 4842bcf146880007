"""The table from errors to HTTP, and the error body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest

from k3dreg.oci import errors
from k3dreg.oci.errors import K3dregError
from k3dreg.web.error_answers import TABLE, error_answer, method_not_allowed, status_and_code, unexpected_answer


def tree(cls: type[K3dregError] = K3dregError) -> Iterator[type[K3dregError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


OWN = [cls for cls in tree() if cls.__module__.startswith("k3dreg.")]


def make(cls: type[K3dregError]) -> K3dregError:
    parameters = signature(cls).parameters.values()
    more: dict[str, Any] = {p.name: 9 for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    return cls("what happened", **more)


@pytest.mark.parametrize("cls", OWN)
def test_every_error_of_the_tree_is_in_the_table_itself(cls: type[K3dregError]) -> None:
    assert cls in TABLE


def test_the_table_holds_nothing_else() -> None:
    assert set(TABLE) == set(OWN)


def test_no_answer_to_a_pull_makes_a_node_ask_again_without_a_pause() -> None:
    assert [cls for cls in OWN if TABLE[cls][0] in (408, 429)] in ([], [errors.TooManyUploads])


@pytest.mark.parametrize("cls", [cls for cls in OWN if issubclass(cls, errors.NotFound)])
def test_what_is_not_here_is_404(cls: type[K3dregError]) -> None:
    assert TABLE[cls][0] == 404


def test_a_class_made_elsewhere_counts_as_its_nearest_ancestor() -> None:
    class SomethingDenied(errors.Denied):
        pass

    assert status_and_code(SomethingDenied("x")) == (403, "DENIED")


@pytest.mark.parametrize("cls", OWN)
def test_the_body_is_the_spec_s_and_its_headers_fit(cls: type[K3dregError]) -> None:
    answer = error_answer(make(cls))
    assert json.loads(answer.body) == {"errors": [{"code": TABLE[cls][1], "message": "what happened"}]}
    assert answer.length == len(answer.body)
    assert dict(answer.headers)["Content-Type"] == "application/json"
    assert answer.reason == "what happened"


def test_advice_is_the_detail() -> None:
    [error] = json.loads(error_answer(errors.Denied("no", advice="log in")).body)["errors"]
    assert error["detail"] == "log in"


def test_only_needed_credentials_that_make_sense_to_ask_for_are_asked_for() -> None:
    asking = [cls for cls in OWN if "WWW-Authenticate" in dict(error_answer(make(cls)).headers)]
    assert asking == [errors.LoginRequired, errors.AuthenticationRequired]
    again = error_answer(errors.AuthenticationRequired("no", challenge=False))
    assert again.status == 401
    assert "WWW-Authenticate" not in dict(again.headers)


def test_not_yet_says_when_in_whole_seconds_and_never_zero() -> None:
    assert dict(error_answer(errors.NotYet("wait", after=2.1)).headers)["Retry-After"] == "3"
    assert dict(error_answer(errors.NotYet("wait", after=0.0)).headers)["Retry-After"] == "1"


def test_a_range_outside_says_how_large_the_content_is() -> None:
    assert dict(error_answer(errors.RangeNotSatisfiable("no", size=9)).headers)["Content-Range"] == "bytes */9"


def test_a_method_that_is_not_there_names_those_that_are() -> None:
    answer = method_not_allowed(["GET", "HEAD"])
    assert (answer.status, dict(answer.headers)["Allow"]) == (405, "GET, HEAD")


def test_a_fault_is_500_without_a_detail() -> None:
    answer = unexpected_answer()
    assert answer.status == 500
    assert "detail" not in json.loads(answer.body)["errors"][0]
