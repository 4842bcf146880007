"""Requests of this very daemon, and of an engine on its behalf, are known by their User-Agent."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from k3dreg.oci.user_agent import USER_AGENT, is_on_our_behalf
from k3dreg.reporting.trace import Trace
from k3dreg.web.site import make_site
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import WireTestCase

# As real engines write it: the classic store of 20.10, and the containerd store of 28.5.
OLD = "docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1.0 os/linux arch/amd64 UpstreamClient({})"
NEW = (
    "docker/28.5.2 go/go1.24 git-commit/3ef3c07 kernel/6.1.0 os/linux arch/amd64 containerd-client/2.1.9+unknown "
    "storage-driver/overlayfs UpstreamClient({})"
)
ANOTHER = USER_AGENT[:-1] + ("0" if USER_AGENT[-1] != "0" else "1")


@pytest.mark.parametrize("engine", [OLD, NEW])
def test_an_engine_tells_for_whom_it_asks(engine: str) -> None:
    assert is_on_our_behalf(engine.format(USER_AGENT))
    for client in ("Docker-Client/28.5.2 \\(linux\\)", "k3dreg/0.1.0", ANOTHER, ""):
        assert not is_on_our_behalf(engine.format(client))


@pytest.mark.parametrize("agent", [None, "", "containerd/2.1", ANOTHER], ids=["none", "empty", "node", "another"])
def test_other_clients_are_not_on_our_behalf(agent: str | None) -> None:
    assert not is_on_our_behalf(agent)


def test_a_request_of_our_own_is_known() -> None:
    assert is_on_our_behalf(USER_AGENT)


class WebTests(WireTestCase):
    async def test_who_works_on_a_request_is_told(self) -> None:
        seen: list[bool] = []

        async def look(trace: Trace) -> None:
            seen.append(trace.circular)

        registry = FakeRegistry()
        registry.before = look
        wire = await self.connect(self.listen(make_site(registry, Clock())))
        for agent in (NEW.format(USER_AGENT), NEW.format("k3dreg/0.1.0")):
            for path in ("manifests/1", f"blobs/sha256:{'0' * 64}"):
                answer = await wire.ask("GET", f"/v2/library/x/{path}?ns=docker.io", User_Agent=agent)
                self.assertEqual(answer.status, 404)
        self.assertEqual(seen, [True, True, False, False])
