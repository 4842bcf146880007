"""A daemon without an engine: what is pushed to it is nobody's image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conformance.checks import NOBODY
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.registry_client import (
    RegistryClient,
    digest_of,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without an engine."""
    with running(NOBODY, tmp_path_factory.mktemp("conformance")) as daemon:
        yield daemon


@pytest.fixture(params=[False, True], ids=["connection-each", "keep-alive"])
def client(alone: Daemon, request: pytest.FixtureRequest) -> RegistryClient:
    return RegistryClient(alone.host, keep_alive=request.param)


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"conformance/r{digest_of(request.node.nodeid.encode())[7:27]}"
