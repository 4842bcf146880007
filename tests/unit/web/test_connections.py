"""The budget of connections: who is closed, when new ones wait, and what the log says."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from k3dreg.web.connections import CLOSING, FINISHING, GRACE, Connections, connection_budget


class FakePort:
    """A listening port, as the budget uses it."""

    def __init__(self) -> None:
        self.numberAccepts = 100
        self.accepting = True

    def pauseProducing(self) -> None:
        self.accepting = False

    def resumeProducing(self) -> None:
        self.accepting = True


class FakeConnection:
    """Closes at once when it is told to."""

    def __init__(self, connections: Connections) -> None:
        self.closed = False
        self.told: list[str] = []
        self.connections = connections
        connections.opened(self)

    def close_idle(self) -> None:
        self.closed = True
        self.connections.lost(self)

    def close_when_answered(self) -> None:
        self.told.append("close when answered")

    def interrupt(self) -> None:
        self.told.append("interrupt")

    def abort(self) -> None:
        self.told.append("abort")


class SlowlyClosing(FakeConnection):
    """Closes when the test says so."""

    def close_idle(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def port() -> FakePort:
    return FakePort()


@pytest.fixture
def connections(clock: Clock, port: FakePort) -> Connections:
    made = Connections(clock, 3)
    made.admit_at(port)
    return made


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "k3dreg.web.connections":
            found.append(str(event["log_format"]).format(**event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_a_port_accepts_no_more_in_one_turn_than_there_is_room_for(
    connections: Connections, clock: Clock, port: FakePort
) -> None:
    assert port.numberAccepts == 3
    FakeConnection(connections)
    FakeConnection(connections)
    port.numberAccepts = 120  # Twisted adds to it
    clock.advance(0)
    assert port.numberAccepts == 1


def test_the_connection_that_is_idle_for_the_longest_time_makes_room(connections: Connections, clock: Clock) -> None:
    busy, first, second = (FakeConnection(connections) for _ in range(3))
    connections.began(busy)
    connections.began(first)
    clock.advance(1)
    connections.ended(first)
    clock.advance(1)
    new = FakeConnection(connections)
    clock.advance(0)
    assert [each.closed for each in (busy, first, second, new)] == [False, False, True, False]


def test_new_connections_wait_until_one_has_been_idle_for_long_enough(
    connections: Connections, clock: Clock, port: FakePort
) -> None:
    made = [FakeConnection(connections) for _ in range(4)]
    clock.advance(GRACE / 2)
    assert not port.accepting
    assert not any(each.closed for each in made)
    clock.advance(GRACE / 2)
    assert port.accepting
    assert [each.closed for each in made] == [True, False, False, False]


def test_new_connections_wait_while_all_are_busy(
    connections: Connections, clock: Clock, port: FakePort, lines: list[str]
) -> None:
    made = [FakeConnection(connections) for _ in range(4)]
    for each in made:
        connections.began(each)
    clock.advance(100)
    assert not port.accepting
    assert not any(each.closed for each in made)
    assert [line[:17] for line in lines] == ["all 3 connections"]
    connections.ended(made[2])
    clock.advance(GRACE)
    assert port.accepting
    assert made[2].closed


def test_there_is_one_check_at_a_time(connections: Connections, clock: Clock, port: FakePort) -> None:
    made = [FakeConnection(connections) for _ in range(4)]
    clock.advance(GRACE / 2)
    assert not port.accepting
    connections.lost(made[0])
    clock.advance(0)
    assert port.accepting
    clock.advance(0)
    assert connections._look not in [call.func for call in clock.getDelayedCalls()]


def test_new_connections_are_accepted_when_another_is_lost(
    connections: Connections, clock: Clock, port: FakePort
) -> None:
    made = [FakeConnection(connections) for _ in range(4)]
    for each in made:
        connections.began(each)
    clock.advance(1)
    assert not port.accepting
    connections.lost(made[0])
    clock.advance(0)
    assert port.accepting


def test_the_log_has_one_line_in_ten_seconds_which_counts(
    connections: Connections, clock: Clock, lines: list[str]
) -> None:
    for _ in range(23):
        clock.advance(1)
        FakeConnection(connections)
    clock.advance(1)
    assert [line.partition(" ")[0] for line in lines] == ["1", "10"]


def test_connections_that_are_long_in_closing_are_not_counted_twice_and_have_a_bound(
    connections: Connections, clock: Clock, port: FakePort
) -> None:
    made: list[SlowlyClosing] = []
    while port.accepting and len(made) < 100:
        made.append(SlowlyClosing(connections))
        clock.advance(GRACE)
    assert [each.closed for each in made] == [True] * 4 + [False] * 3
    connections.lost(made[0])
    clock.advance(GRACE)
    assert port.accepting


def test_without_a_budget_nothing_is_closed_and_nothing_is_scheduled(clock: Clock) -> None:
    connections = Connections(clock)
    made = [FakeConnection(connections) for _ in range(1000)]
    assert clock.getDelayedCalls() == []
    assert not any(each.closed for each in made)


def test_nothing_is_scheduled_after_the_shutdown(connections: Connections, clock: Clock) -> None:
    made = [SlowlyClosing(connections) for _ in range(4)]
    stopped = Deferred.fromCoroutine(connections.shutdown())
    for each in made:
        assert not stopped.called
        connections.lost(each)
    assert stopped.called
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("budget", [None, 3])
def test_a_shutdown_closes_what_is_idle_and_gives_the_rest_time_to_end(clock: Clock, budget: int | None) -> None:
    connections = Connections(clock, budget)
    idle, answered, slow, silent = (FakeConnection(connections) for _ in range(4))
    for busy in (answered, slow, silent):
        connections.began(busy)
    stopped = Deferred.fromCoroutine(connections.shutdown())
    assert idle.closed
    assert answered.told == slow.told == silent.told == ["close when answered"]
    connections.lost(answered)
    clock.advance(FINISHING)
    assert slow.told == silent.told == ["close when answered", "interrupt"]
    connections.lost(slow)
    clock.advance(CLOSING)
    assert silent.told == ["close when answered", "interrupt", "abort"]
    assert answered.told == ["close when answered"]
    assert not stopped.called
    connections.lost(silent)
    assert stopped.called
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(("limit", "budget"), [(64, 8), (1024, 200), (16, 4), (resource.RLIM_INFINITY, 209710)])
def test_the_budget_leaves_descriptors_for_files(monkeypatch: pytest.MonkeyPatch, limit: int, budget: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert connection_budget() == budget
