"""Requests to a helper that links layers, whose program runs in threads beside the test."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from attrs import asdict

from k3dreg.clusters.nodes import Node, NodeMount
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.linking import linking_messages as messages
from k3dreg.linking import remote_linker
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.linking.linking_helper import serve
from k3dreg.linking.linking_messages import Request, parse_answer
from k3dreg.linking.remote_linker import RemoteLinker
from k3dreg.oci.digest import Digest
from tests.fakes.linking import FakeLinker

CHAIN = (Digest.of(b"0"), Digest.of(b"1"))
NODE = Node("0123", "k3d-x-agent-0", 42, "/run/x.sock", (NodeMount("/var/lib/docker/volumes/1", "/var/lib/k3s"),))
INFO = EngineInfo(
    "",
    "",
    (0, 0),
    ImageStore.CONTAINERD,
    "overlayfs",
    "/var/lib/docker",
    containerd_address="/run/containerd/containerd.sock",
    containerd_namespace="moby",
    driver_status={"Using metacopy": "false"},
    security_options=("name=seccomp,profile=builtin",),
)


class Helper:
    """A helper with two connections, and k3dreg's end."""

    def __init__(self) -> None:
        self.linker = FakeLinker()
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.remote = RemoteLinker([own for own, _ in pairs])
        self.threads = [threading.Thread(target=serve, args=(theirs, self.linker)) for _, theirs in pairs]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.remote.close()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.close()


def test_a_request_arrives_as_it_was() -> None:
    for request in (Request(messages.LINK, NODE, INFO, "docker.io/library/app", CHAIN), Request("x", NODE)):
        assert Request.parse(request.encode()) == request


def test_a_request_of_the_most_layers_that_an_image_has_is_a_packet() -> None:
    request = Request(messages.LINK, NODE, INFO, "r" * 255, CHAIN * 64)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.send(request.encode())
        assert Request.parse(other.recv(messages.LARGEST)) == request
    with pytest.raises(CannotLink, match="too many layers"):
        Request(messages.LINK, NODE, INFO, "r", CHAIN * 1000).encode()


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"task": "link", "node": {}}', b"\xff"])
def test_a_request_of_another_version_is_refused(data: bytes) -> None:
    with pytest.raises(CannotLink, match="same version"):
        Request.parse(data)


def test_the_work_is_done_by_the_helper(helper: Helper) -> None:
    assert helper.remote.link(INFO, NODE, "app", CHAIN) == helper.linker.done
    assert helper.linker.linked == [(NODE.name, "app", CHAIN)]
    helper.remote.examine(INFO, NODE)
    helper.remote.clean_up(NODE)
    assert helper.linker.cleaned == [NODE.name]
    assert helper.remote.is_alive()


def test_the_helpers_reason_is_raised(helper: Helper) -> None:
    helper.linker.error = CannotLink("Docker removes the image")
    for work in (lambda: helper.remote.link(INFO, NODE, "app", CHAIN), lambda: helper.remote.examine(INFO, NODE)):
        with pytest.raises(CannotLink, match="Docker removes the image"):
            work()
    helper.linker.error = None
    helper.remote.examine(INFO, NODE)


def test_a_defect_ends_neither_the_helper_nor_k3dreg(helper: Helper, capsys: pytest.CaptureFixture[str]) -> None:
    helper.linker.error = ValueError("a defect")
    with pytest.raises(CannotLink, match="failed in the helper container: ValueError"):
        helper.remote.link(INFO, NODE, "app", CHAIN)
    assert "a defect" in capsys.readouterr().err
    assert helper.remote.is_alive()


def test_two_linkings_go_on_at_once_and_no_third(helper: Helper) -> None:
    both = threading.Barrier(3)
    with mock.patch.object(helper.linker, "clean_up", lambda node: both.wait(10)):
        threads = [threading.Thread(target=helper.remote.clean_up, args=(NODE,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 10
        while both.n_waiting < 2:
            assert time.monotonic() < end
        with pytest.raises(CannotLink, match="busy"):
            helper.remote.examine(INFO, NODE)
        both.wait(10)
        for thread in threads:
            thread.join()
    assert helper.remote.is_alive()


class Slow:
    """Goes on until it is cancelled."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def link(self, info: object, node: object, repository: str, chain: object, proceed: Any) -> LinkingResult:
        while True:
            try:
                proceed()
            except CannotLink as error:
                self.ended.append(str(error))
                raise
            time.sleep(0.001)


def test_work_that_k3dreg_stops_is_stopped_in_the_helper(helper: Helper) -> None:
    slow, asked = Slow(), 0

    def proceed() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise CannotLink("it takes longer than the node waits")

    with mock.patch.object(helper.linker, "link", slow.link):
        with pytest.raises(CannotLink, match="longer than the node waits"):
            helper.remote.link(INFO, NODE, "app", CHAIN, proceed)
    assert slow.ended == ["k3dreg cancelled the request"]
    # The connection serves the next request.
    for _ in range(2):
        assert helper.remote.link(INFO, NODE, "app", CHAIN) == helper.linker.done


def test_a_helper_that_does_not_stop_counts_as_ended(helper: Helper) -> None:
    release = threading.Event()
    with mock.patch.object(helper.linker, "link", lambda *_: LinkingResult(layers=int(release.wait(10)))):
        with mock.patch.object(remote_linker, "_MAX_WAIT", 0.05), pytest.raises(CannotLink, match="enough"):
            helper.remote.link(INFO, NODE, "app", CHAIN, mock.Mock(side_effect=CannotLink("enough")))
        assert not helper.remote.is_alive()
        release.set()


def test_a_close_ends_the_work_under_way_on_both_sides(helper: Helper) -> None:
    slow, failures = Slow(), []

    def link() -> None:
        try:
            helper.remote.link(INFO, NODE, "app", CHAIN)
        except CannotLink as error:
            failures.append(str(error))

    with mock.patch.object(helper.linker, "link", slow.link):
        thread = threading.Thread(target=link)
        thread.start()
        time.sleep(0.05)
        helper.close()
        thread.join(10)
    assert failures[0].startswith("the helper container has ended")
    assert slow.ended in (["k3dreg cancelled the request"], [])
    with pytest.raises(CannotLink, match="has ended"):
        helper.remote.clean_up(NODE)


@pytest.mark.parametrize("says", [b"", b"no JSON", b"{}", b'{"done": {}}', b'{"done": {"layers": -1}}', b"[1]"])
def test_a_helper_that_answers_nonsense_is_not_believed(says: bytes) -> None:
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    remote = RemoteLinker([own])
    with theirs:
        theirs.send(says) if says else theirs.shutdown(socket.SHUT_RDWR)
        with pytest.raises(CannotLink, match="not understand" if says else "has ended"):
            remote.examine(INFO, NODE)
    remote.close()


def test_an_end_of_the_helper_between_two_requests_is_noticed() -> None:
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    remote = RemoteLinker([own])
    assert remote.is_alive()
    theirs.close()
    assert not remote.is_alive()
    with pytest.raises(CannotLink, match="has ended"):
        remote.examine(INFO, NODE)
    remote.close()


def test_numbers_and_texts_of_an_answer_have_bounds() -> None:
    good = asdict(LinkingResult(layers=2, seconds=1.5))
    assert parse_answer(json.dumps({"done": good}).encode()) == LinkingResult(layers=2, seconds=1.5)
    for wrong in (-1, "1", None, True, float("nan"), float("inf"), 2**64, [1]):
        with pytest.raises(CannotLink, match="not understand"):
            parse_answer(json.dumps({"done": {**good, "files": wrong}}).encode())
    with pytest.raises(CannotLink) as raised:
        parse_answer(json.dumps({"error": "two\nlines" + "x" * 1000}).encode())
    assert str(raised.value).startswith("two linesxx")
    assert len(str(raised.value)) == 500
