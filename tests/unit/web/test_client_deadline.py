"""Nodes that wait are made to wait; the others get an answer in time."""

import pytest

from k3dreg.web.client_deadline import deadline_of


@pytest.mark.parametrize(
    "agent",
    [
        "containerd/2.3.2-k3s2",
        "containerd/v2.3.0",
        "containerd/3.0",
        "curl/8",
        "",
        None,
        "containerd/" + "9" * 5000 + ".1",
    ],
)
def test_who_may_give_up_is_answered_within_twenty_seconds(agent: str | None) -> None:
    assert deadline_of(agent) < 20


@pytest.mark.parametrize(
    "agent", ["containerd/1.6.20~ds1", "containerd/1.7.24", "containerd/v2.1.4+unknown", "containerd/2.2.5-k3s2"]
)
def test_who_waits_may_wait_for_a_pull_but_not_until_he_gives_up_altogether(agent: str) -> None:
    assert 60 < deadline_of(agent) < 300
