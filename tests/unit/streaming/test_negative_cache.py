"""Refusals that are remembered for seconds."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from k3dreg.oci.errors import (
    AuthenticationRequired,
    EngineUnavailable,
    K3dregError,
    ManifestUnknown,
    RateLimited,
    UpstreamFailed,
)
from k3dreg.streaming.negative_cache import FOR, FOR_RATE_LIMITED, REMEMBERED, NegativeCache


@pytest.mark.parametrize("error", [ManifestUnknown("x"), AuthenticationRequired("x"), UpstreamFailed("x")])
def test_a_registrys_answer_is_repeated_for_seconds(error: K3dregError) -> None:
    clock = Clock()
    refusals: NegativeCache[str] = NegativeCache(clock)
    refusals.remember_answer("a", error)
    clock.advance(FOR - 0.1)
    with pytest.raises(type(error)) as raised:
        refusals.check("a")
    assert raised.value is error
    refusals.check("b")
    clock.advance(0.2)
    refusals.check("a")
    assert len(refusals) == 0


def test_a_registry_that_counts_is_left_alone_for_longer() -> None:
    clock = Clock()
    refusals: NegativeCache[str] = NegativeCache(clock)
    refusals.remember_answer("a", RateLimited("x"))
    clock.advance(FOR_RATE_LIMITED - 0.1)
    with pytest.raises(RateLimited):
        refusals.check("a")


def test_trouble_of_the_engine_is_no_registrys_answer() -> None:
    refusals: NegativeCache[str] = NegativeCache(Clock())
    refusals.remember_answer("a", EngineUnavailable("x"))
    refusals.check("a")


def test_any_error_is_repeated_for_the_seconds_that_are_given() -> None:
    clock = Clock()
    refusals: NegativeCache[str] = NegativeCache(clock)
    refusals.remember("a", EngineUnavailable("x"), 300)
    clock.advance(299)
    with pytest.raises(EngineUnavailable):
        refusals.check("a")
    clock.advance(1)
    refusals.check("a")


def test_an_error_ends_when_the_time_is_set_back() -> None:
    clock = Clock()
    clock.advance(3600)
    refusals: NegativeCache[str] = NegativeCache(clock)
    refusals.remember("a", ManifestUnknown("x"))
    clock.rightNow -= 1800
    refusals.check("a")


def test_a_success_ends_it() -> None:
    refusals: NegativeCache[str] = NegativeCache(Clock())
    refusals.remember("a", ManifestUnknown("x"))
    refusals.forget("a")
    refusals.check("a")


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    refusals: NegativeCache[int] = NegativeCache(Clock())
    for number in range(REMEMBERED + 5):
        refusals.remember(number, ManifestUnknown("x"))
    assert len(refusals) == REMEMBERED
    refusals.check(0)
    with pytest.raises(ManifestUnknown):
        refusals.check(REMEMBERED)


def test_an_error_raised_many_times_gathers_no_tracebacks() -> None:
    refusals: NegativeCache[str] = NegativeCache(Clock())
    refusals.remember("a", ManifestUnknown("x"))
    depths = []
    for _ in range(3):
        try:
            refusals.check("a")
        except ManifestUnknown as error:
            traceback, depth = error.__traceback__, 0
            while traceback is not None:
                traceback, depth = traceback.tb_next, depth + 1
            depths.append(depth)
    assert len(set(depths)) == 1
