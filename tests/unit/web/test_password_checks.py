"""In which order passwords are checked, and which checks are given up."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from k3dreg.oci.errors import NotYet
from k3dreg.web.password_checks import MAX_WAIT, MOST_OF_ONE, MOST_WAITING, Checks


class Room:
    """Checks, two at once, that end when a test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.checks = Checks(self.clock, 2)
        self.begun: list[str] = []
        self.running: dict[str, Deferred[bool]] = {}
        self.outcomes: dict[str, object] = {}

    def ask(self, name: str, client: str = "10.0.0.1") -> Deferred[bool]:
        def start() -> Deferred[bool]:
            self.begun.append(name)
            self.running[name] = Deferred()
            return self.running[name]

        asked = self.checks.ask(name.encode(), client, start)
        asked.addBoth(lambda outcome: self.outcomes.__setitem__(name, getattr(outcome, "value", outcome)))
        return asked

    def end(self, name: str, *, right: bool = False) -> None:
        running = self.running.pop(name)
        running.callback(right)
        assert not isinstance(running.result, Failure), running.result


@pytest.fixture
def room() -> Room:
    return Room()


def test_two_run_at_once_and_the_rest_waits(room: Room) -> None:
    for name in "abc":
        room.ask(name)
    assert room.begun == ["a", "b"]
    room.end("a", right=True)
    assert room.outcomes == {"a": True}
    assert room.begun == ["a", "b", "c"]


def test_clients_take_turns_however_much_one_of_them_asks(room: Room) -> None:
    for number in range(100):
        room.ask(f"guess {number}", "10.0.0.1")
    room.ask("right", "10.0.0.2")
    room.end("guess 0")
    room.end("guess 1")
    assert "right" in room.begun


def test_the_addresses_of_one_ipv6_network_are_one_client(room: Room) -> None:
    for number in range(100):
        room.ask(f"guess {number}", f"2001:db8::{number:x}")
    room.ask("right", "2001:db8:0:1::1")
    room.end("guess 0")
    room.end("guess 1")
    assert "right" in room.begun


def test_the_newest_of_one_client_runs_first(room: Room) -> None:
    for number in range(100):
        room.ask(f"guess {number}")
    room.ask("right")
    room.end("guess 0")
    assert room.begun[-1] == "right"


def test_a_check_that_nobody_waits_for_any_more_never_begins(room: Room) -> None:
    asked = [room.ask(name) for name in "abcd"]
    asked[2].cancel()
    room.end("a")
    room.end("b")
    assert room.begun == ["a", "b", "d"]
    assert isinstance(room.outcomes["c"], CancelledError)
    room.end("d")
    assert len(room.checks) == 0


def test_one_of_two_that_wait_for_the_same_may_leave(room: Room) -> None:
    room.ask("a")
    room.ask("b")
    first, second = room.ask("c"), room.ask("c")
    first.cancel()
    room.end("a")
    room.end("c", right=True)
    assert second.called
    assert room.outcomes["c"] is True


def test_a_client_that_asks_too_much_loses_its_oldest_checks(room: Room) -> None:
    for number in range(MOST_OF_ONE + 3):
        room.ask(f"guess {number}")
    assert len(room.checks) == MOST_OF_ONE
    assert isinstance(room.outcomes["guess 2"], NotYet)
    assert "guess 3" not in room.outcomes


def test_when_too_many_wait_the_client_with_most_loses_one(room: Room) -> None:
    for number in range(MOST_OF_ONE):
        room.ask(f"guess {number}", "10.0.0.1")
    for number in range(MOST_WAITING):
        room.ask(f"other {number}", f"10.1.{number // 200}.{number % 200}")
    assert len(room.checks) == MOST_WAITING
    refused = [name for name, outcome in room.outcomes.items() if isinstance(outcome, NotYet)]
    assert refused
    assert all(name.startswith("guess") for name in refused)


def test_what_has_waited_for_long_is_refused(room: Room) -> None:
    for name in "abc":
        room.ask(name)
    room.clock.advance(MAX_WAIT)
    room.ask("d")
    room.end("a")
    assert isinstance(room.outcomes["c"], NotYet)
    assert room.begun == ["a", "b", "d"]


def test_closing_drops_what_waits_and_takes_nothing_more(room: Room) -> None:
    for name in "abc":
        room.ask(name)
    room.checks.close()
    assert all(isinstance(outcome, CancelledError) for outcome in room.outcomes.values())
    assert len(room.outcomes) == 3
    room.ask("d")
    assert isinstance(room.outcomes["d"], CancelledError)
    room.end("a")
    assert room.begun == ["a", "b"]


def test_a_check_that_fails_fails_for_its_client_alone(room: Room) -> None:
    room.ask("a")
    room.running.pop("a").errback(OSError("no thread"))
    assert isinstance(room.outcomes["a"], OSError)
    room.ask("a")
    assert room.begun == ["a", "a"]
