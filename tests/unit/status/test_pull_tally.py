"""What was saved counts images as clients pull them, however many requests that takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from k3dreg.reporting.activity import Activity
from k3dreg.status.board import Board
from k3dreg.status.pull_tally import Tally
from tests.fakes.pulls import APP, Client, Image

ONE, SEVERAL = Image("one"), Image("several", several=True)


async def nowhere(address: str) -> str:
    return ""


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(Clock(), nowhere)
    yield board
    board.shutdown()


def client_of(board: Board, address: str = "10.0.0.1") -> Client:
    return Client(board, Clock(), address)


def pulls(board: Board) -> int:
    return board.live().saved.pulls


def pull_of(tag: str) -> Activity:
    return Activity("pull", f"{APP}:{tag}", 0.0)


def test_an_image_of_one_platform_or_of_several_is_one_pull(board: Board) -> None:
    assert SEVERAL.index is not None
    client_of(board).manifests("1", ONE)
    assert pulls(board) == 1
    client_of(board).manifests("2", SEVERAL)
    assert pulls(board) == 2
    # As skopeo and crane ask, and a node for a digest in a pod.
    client = client_of(board, "10.0.0.2")
    client.get("1", SEVERAL.index, SEVERAL.listed)
    client.get(str(SEVERAL.manifest.digest), SEVERAL.manifest, SEVERAL.contents)
    assert pulls(board) == 3
    client_of(board, "10.0.0.3").manifests(str(SEVERAL.index.digest), SEVERAL)
    assert pulls(board) == 4


def test_a_look_alone_is_no_pull(board: Board) -> None:
    client = client_of(board)
    client.head("1", ONE.root)
    client.head("1", ONE.root)
    client.end(client.begin("GET", "1"), 304, manifest=ONE.root)
    client.get("1", ONE.root, ONE.contents, aborted=True)
    assert pulls(board) == 0


def test_an_image_that_docker_pulled_for_it_is_not_saved_and_the_next_ones_are(board: Board) -> None:
    client = client_of(board)
    board.began(pull_of("1"))
    # The answer to HEAD may come before the end of Docker's pull.
    client.head("1", SEVERAL.root)
    board.ended(pull_of("1"), 1.0, "")
    client.get(str(SEVERAL.root.digest), SEVERAL.root, SEVERAL.listed)
    client.get(str(SEVERAL.manifest.digest), SEVERAL.manifest, SEVERAL.contents)
    assert pulls(board) == 0
    client_of(board, "10.0.0.2").manifests("1", SEVERAL)
    assert pulls(board) == 1


def test_of_nodes_that_wait_for_one_pull_of_dockers_all_but_one_are_saved(board: Board) -> None:
    board.began(pull_of("1"))
    board.ended(pull_of("1"), 1.0, "")
    for number in range(3):
        client_of(board, f"10.0.0.{number}").manifests("1", SEVERAL)
    assert pulls(board) == 2


def test_a_pull_that_failed_and_one_of_another_repository_take_nothing_away(board: Board) -> None:
    board.began(pull_of("1"))
    board.ended(pull_of("1"), 1.0, "PullFailed")
    board.began(Activity("pull", "registry.example/other:1", 0.0))
    board.began(Activity("export", f"{APP}:1", 0.0))
    client_of(board).manifests("1", SEVERAL)
    assert pulls(board) == 1


def test_what_came_from_the_origin_was_not_saved(board: Board) -> None:
    client = client_of(board)
    client.get("1", ONE.root, ONE.contents, source="registry")
    client.blob(ONE.layers[0], source="registry")
    saved = board.live().saved
    assert (saved.pulls, saved.bytes, saved.fetched) == (0, 0, 1005)


def test_what_it_remembers_is_bounded() -> None:
    tally = Tally(most=10)
    for number in range(100):
        tally.began(Activity("pull", f"registry.example/{number}:1", 0.0))
    # Of the pulls by Docker, the ten last ones are subtracted.
    for number, counts in ((89, 1), (90, 0), (99, 0)):
        before = tally.saved().pulls
        tally.given(f"registry.example/{number}")
        assert tally.saved().pulls - before == counts
