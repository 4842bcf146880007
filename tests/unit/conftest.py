"""For unit tests: what a test begins, it ends, and no test asks a name server."""

from __future__ import annotations

import functools
import importlib.metadata
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet._resolver import GAIResolver

from tests.fakes.leaks import nothing_left

reactor = cast(Any, _reactor)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path: Path, _in_a_directory_of_its_own: None) -> Iterator[None]:
    with nothing_left(tmp_path):
        yield


@pytest.fixture(autouse=True, scope="session")
def _metadata_is_read_once() -> Iterator[None]:
    """For each test of trial's, pytest 9 asks several times for Twisted's version, which takes 2 ms each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_name_server() -> Iterator[None]:
    """A machine without a network waits 5 seconds and more for its name servers."""
    before = reactor.installNameResolver(GAIResolver(reactor, getaddrinfo=cast(Any, _own_addresses)))
    yield
    reactor.installNameResolver(before)


def _own_addresses(host: str, *arguments: Any) -> Any:
    """Know only addresses and "localhost", else raise `socket.gaierror` as for an unknown name."""
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, f"unit tests do not know {host}") from None
    return socket.getaddrinfo(host, *arguments)
