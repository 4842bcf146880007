"""What nodes do when a mirror refuses, seen on real nodes.  The table is in docs/refusals.md, which is checked."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import responses

import pytest
from attrs import frozen

from k3dreg.oci import errors
from k3dreg.web.error_answers import TABLE
from tests.integration.support import rig
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.scripted import Reply, Scripted, an_image, refusal

pytestmark = pytest.mark.every_node

# containerd's, of the nodes that the document is about.
VERSIONS = {"node23": "2.3", "node": "2.1", "node17": "1.7", "node16": "1.6"}
DOCUMENT = rig.REPOSITORY / "docs/refusals.md"
BASIC = {"WWW_Authenticate": 'Basic realm="tests"'}
BEARER = {"WWW_Authenticate": 'Bearer realm="http://127.0.0.1:1/token",service="tests"'}
NEXT = "next host"
REFUSED = None

# What the first mirror answers to everything.
ANSWERS: dict[str, Reply | None] = {
    "401, Basic challenge": refusal(401, "UNAUTHORIZED", **BASIC),
    "401, Bearer challenge": refusal(401, "UNAUTHORIZED", **BEARER),
    "401, no challenge": refusal(401, "UNAUTHORIZED"),
    **{
        f"{status} {responses.get(status, '')}": refusal(status)
        for status in (403, 404, 408, 429, 500, 502, 503, 504, 507)
    },
    "head after a second": Reply(after=1),
    "closed without an answer": Reply(None),
    "reset without an answer": Reply(None, reset=True),
    "connection refused": REFUSED,
}


@frozen
class Row:
    """What a node did with an answer: when it asked for a tag, a manifest, a layer; and when nobody else was there."""

    tag: str
    manifest: str
    layer: str
    alone: str = "-"


@pytest.fixture(scope="module")
def observed() -> dict[str, dict[str, Row]]:
    """For each node, its row for each answer.  All nodes at once: they wait for each other's disk, not for us."""
    nodes = rig.nodes()
    if not nodes:
        rig.unavailable("K3DREG_TEST_NODES is not set:")
    with ThreadPoolExecutor(len(nodes)) as pool:
        return dict(zip((node.name for node in nodes), pool.map(observe, map(Node, nodes)), strict=True))


def observe(node: Node) -> dict[str, Row]:
    """All answers, to one node."""
    node.clean()
    rows = {}
    with Scripted() as first, Scripted() as second:
        for number, (name, reply) in enumerate(ANSWERS.items()):
            rows[name] = _in_turn(node, first, second, reply, f"turn{number}")
        challenge, again = ANSWERS["401, Basic challenge"], ANSWERS["401, no challenge"]
        assert challenge
        assert again
        credentials = ("user", "wrong")
        rows["401, Basic challenge, again to the pod's credentials"] = _in_turn(
            node, first, second, challenge, "again", credentials
        )
        rows["401, no challenge, to the pod's credentials"] = _in_turn(
            node, first, second, again, "once", credentials, before=challenge
        )
        for name, reset in (("closed in mid-body", False), ("reset in mid-body", True)):
            rows[name] = Row("-", "-", _in_mid_body(node, first, second, reset))
    node.use_no_mirror()
    node.clean()
    return rows


def _in_turn(
    node: Node,
    first: Scripted,
    second: Scripted,
    reply: Reply | None,
    repository: str,
    credentials: tuple[str, str] = ("", ""),
    before: Reply | None = None,
) -> Row:
    """Two mirrors, of which the first does that and the second has the image; and then the first as the only host.

    `before` is what it answers to those who show no credentials.
    """
    image = an_image()
    for mirror in (first, second):
        mirror.hold(repository, image)
        mirror.seen.clear()
        mirror.rules.clear()
    if before is not None:
        first.rules = [("authorized", reply or Reply()), ("/v2/", before)]
    elif reply is not None:
        first.rules = [("/v2/", reply)]
    here = "127.0.0.1:1" if reply is REFUSED else first.address
    node.use_mirror(here, second.address)
    node.pull(f"127.0.0.1:1/{repository}:1", *credentials)
    # A closed connection may have been one that was kept from before: the request is repeated then.
    repeats = reply is not None and reply.status is not None
    cells = []
    for pattern in ("HEAD .*/manifests/", "GET .*/manifests/", f"GET .*/blobs/{image.layers[0]}"):
        asked = first.asked(pattern + (".* authorized" if credentials[0] else ""))
        cells.append(_cell(asked if repeats else 1, NEXT if second.asked(pattern) else "takes it"))
    first.seen.clear()
    first.hold(f"{repository}-alone", image)
    node.use_no_mirror()
    try:
        node.pull(f"{here}/{repository}-alone:1", *credentials)
    except PullFailed:
        asked = first.asked("HEAD .*" + ("authorized" if credentials[0] else ""))
        cells.append(_cell(asked if repeats else 1, "pull fails"))
    else:
        cells.append("takes it")
    return Row(*cells)


def _cell(asked: int, end: str) -> str:
    return end if asked <= 1 else f"asks {asked} times, then {end}"


def _in_mid_body(node: Node, first: Scripted, second: Scripted, reset: bool) -> str:
    image = an_image()
    repository = f"cut-{reset}".lower()
    for mirror in (first, second):
        mirror.hold(repository, image)
        mirror.seen.clear()
    blob = f"GET .*/blobs/{image.layers[0]}"
    first.rules = [(blob, Reply(cut=100_000, reset=reset, once=True))]
    node.use_mirror(first.address, second.address)
    try:
        node.pull(f"127.0.0.1:1/{repository}:1")
    except PullFailed:
        assert not second.asked(blob)
        return "pull fails"
    assert first.asked(blob) == 2
    return NEXT if second.asked(blob) else "asks for the rest"


def as_table(observed: dict[str, dict[str, Row]]) -> str:
    """Markdown.  Where nodes differ, the cell says which does what."""
    lines = [
        "| the mirror's answer | a tag (`HEAD`) | a manifest (`GET`) | a layer (`GET`) | as the only host |",
        "|---|---|---|---|---|",
    ]
    for name in next(iter(observed.values())):
        rows = {_version(node): rows[name] for node, rows in observed.items()}
        cells = [_together(rows, column) for column in ("tag", "manifest", "layer", "alone")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _together(rows: dict[str, Row], column: str) -> str:
    said: dict[str, list[str]] = {}
    for version, row in rows.items():
        said.setdefault(getattr(row, column), []).append(version)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{', '.join(sorted(versions))}: {cell}" for cell, versions in said.items())


def _version(node: str) -> str:
    return VERSIONS.get(node, node)


def test_the_document_has_what_nodes_do(observed: dict[str, dict[str, Row]]) -> None:
    if missing := VERSIONS.keys() - observed.keys():
        rig.unavailable(f"{', '.join(sorted(missing))} not in K3DREG_TEST_NODES:")
    table = as_table(observed)
    print(table)
    assert table in DOCUMENT.read_text(), f"{DOCUMENT} is to have this table:\n{table}"


def test_a_pods_event_tells_of_the_first_refusal_that_is_not_404(node: Node) -> None:
    with Scripted() as first, Scripted() as second:
        for status in (404, 403):
            first.rules = [("/v2/", refusal(status))]
            node.use_mirror_first(first.address)
            # The last host has no such image: 404.
            with pytest.raises(PullFailed, match="403 Forbidden" if status == 403 else "not found$"):
                node.pull(f"{second.address}/absent:1")
    node.use_no_mirror()


# What can come out of a pull; all else is for requests that are wrong, or for pushes.
PULLS = (
    errors.NotFound,
    errors.Refused,
    errors.EngineError,
    errors.ContentError,
    errors.StoreError,
    errors.NotYet,
)


def pull_statuses() -> Iterable[int]:
    """The statuses that k3dreg answers pulls with, when it refuses."""
    return sorted({500, *(status for kind, (status, _) in TABLE.items() if issubclass(kind, PULLS))})


@pytest.mark.parametrize("status", pull_statuses())
def test_each_status_that_k3dreg_refuses_a_pull_with_sends_nodes_to_their_next_host_at_once(
    observed: dict[str, dict[str, Row]], status: int
) -> None:
    for node, rows in observed.items():
        found = [row for name, row in rows.items() if name.startswith(f"{status}") and "again" not in name]
        assert found, f"{status} is not among the answers that are tried"
        for row in found:
            # containerd 2.3 repeats a GET of a manifest once after 403.
            manifest = f"asks 2 times, then {NEXT}" if (node, status) == ("node23", 403) else NEXT
            assert (row.tag, row.manifest, row.layer) == (NEXT, manifest, NEXT), (node, row)


def test_a_second_challenge_would_be_a_loop(observed: dict[str, dict[str, Row]]) -> None:
    """Why credentials that were refused are answered without one."""
    for node, rows in observed.items():
        times = 4 if node == "node23" else 5
        assert rows["401, Basic challenge, again to the pod's credentials"].tag == f"asks {times} times, then {NEXT}"
        assert rows["401, no challenge, to the pod's credentials"].tag == NEXT
