"""Only `k3dreg/docker` knows the paths, query parameters and headers of the Engine API."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import k3dreg

ROOT = Path(k3dreg.__file__).parent
# How the paths that k3dreg uses begin, and some that it may use one day (Engine API 1.51).
API_PATH = re.compile(
    r"/(?:v\d\.\d\d/|containers/|images/|networks/|volumes/|exec/|distribution/|plugins/|system/)"
    r"|/(?:_ping|auth|build|commit|events|info|networks|session|version|volumes)(?:/|\?|$)"
    r"|/archive$"
    r"|X-(?:Registry-Auth|Docker-)"
)
# Routes of k3dreg's own.
OWN = {("status/operations.py", "/events")}


def strings_of(code: str) -> Iterator[str]:
    """Yield every string of a program that is not a docstring; of an f-string its parts."""
    tree = ast.parse(code)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in statements:
            if isinstance(node.value, bytes):
                yield node.value.decode("latin-1")
            elif isinstance(node.value, str):
                yield node.value


def api_paths_of(code: str) -> list[str]:
    return [text for text in strings_of(code) if API_PATH.match(text)]


MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("docker/")])
def test_no_module_outside_docker_knows_a_path_of_the_engine_api(module: str) -> None:
    assert [text for text in api_paths_of((ROOT / module).read_text()) if (module, text) not in OWN] == []


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("docker/")])
def test_no_module_outside_docker_knows_an_http_status_of_docker(module: str) -> None:
    assert "error.status" not in (ROOT / module).read_text()


@pytest.mark.parametrize(
    "code",
    [
        'engine.request("GET", "/info")',
        'engine.request("GET", f"/containers/{container}/json")',
        'url = f"/containers/{id}/archive"',
        'where = f"{url}/archive"',
        'ask("/events?since=0")',
        'path == b"/images/json"',
        'headers = {"X-Registry-Auth": auth}',
    ],
)
def test_the_search_finds_a_path(code: str) -> None:
    assert api_paths_of(code) != []


@pytest.mark.parametrize(
    "code",
    [
        'def f():\n    "/containers/{id}/json is asked."',
        'path = "/var/lib/docker/containers/"',
        'route = "/v2/library/events/manifests/latest"',
        'path = "/eventful"',
    ],
)
def test_the_search_finds_nothing_else(code: str) -> None:
    assert api_paths_of(code) == []
