"""A small client of Docker's Engine API over its UNIX socket: what a person does with `docker`."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode


class DockerError(Exception):
    """The engine refused, or reported an error within its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


# Names and IDs in a person's own engine, by the engine's socket: no test removes or renames what has them.
OTHERS: dict[str, frozenset[str]] = {}


class Docker:
    """One engine.  Every call is a connection of its own; `timeout` in seconds is for each wait on the socket."""

    def __init__(self, path: str, timeout: float = 300) -> None:
        self._path = path
        self._timeout = timeout

    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "",
        registry_auth: str = "",
    ) -> http.client.HTTPResponse:
        """The answer, its body unread.  Raises `DockerError` for a status of 400 or more."""
        for name in _named(method, path, query or {}):
            assert name not in OTHERS.get(self._path, ()), f"{method} {path}: {name} is not the tests'"
        connection = _UnixConnection(self._path, self._timeout)
        url = path + ("?" + urlencode(query) if query else "")
        headers = {"Content-Type": content_type, "X-Registry-Auth": registry_auth}
        connection.request(method, url, body=body, headers={name: value for name, value in headers.items() if value})
        response = connection.getresponse()
        if response.status >= 400:
            text = response.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError):
                text = json.loads(text)["message"]
            raise DockerError(response.status, text)
        return response

    def call(self, method: str, path: str, **more: Any) -> bytes:
        with self.open(method, path, **more) as response:
            return response.read()

    def ask(self, method: str, path: str, value: object = None, **query: str) -> Any:
        """For calls that take a JSON document, or none, and answer with one, or nothing (None)."""
        data = None if value is None else json.dumps(value).encode()
        answer = self.call(method, path, body=data, query=query, content_type="application/json" if data else "")
        return json.loads(answer) if answer.strip() else None

    def progress(self, method: str, path: str, **more: Any) -> list[dict[str, Any]]:
        """For calls that answer with JSON messages.  Raises `DockerError` for an error among them."""
        messages = [json.loads(line) for line in self.call(method, path, **more).splitlines() if line.strip()]
        for message in messages:
            if "error" in message:
                raise DockerError(200, message["error"])
        return messages

    def version(self) -> str:
        return str(json.loads(self.call("GET", "/version"))["Version"])

    def inspect(self, image: str) -> dict[str, Any] | None:
        """None for an image that is not there."""
        try:
            found: dict[str, Any] = json.loads(self.call("GET", f"/images/{quote(image, safe='/:')}/json"))
        except DockerError as error:
            if error.status == 404:
                return None
            raise
        return found

    def pull(self, repository: str, tag: str) -> None:
        """`tag` may be a digest."""
        self.progress("POST", "/images/create", query={"fromImage": repository, "tag": tag})

    def push(self, repository: str, tag: str) -> None:
        """`docker push`, anonymously: the header must be there, and may say nothing."""
        self.progress("POST", f"/images/{repository}/push", query={"tag": tag}, registry_auth="e30=")

    def tag(self, image: str, repository: str, tag: str) -> None:
        self.call("POST", f"/images/{image}/tag", query={"repo": repository, "tag": tag})

    def remove(self, image: str) -> None:
        """`docker rmi -f`; nothing happens when it is not there."""
        try:
            self.call("DELETE", f"/images/{quote(image, safe='/:')}", query={"force": "1"})
        except DockerError as error:
            if error.status != 404:
                raise

    def build(self, name: str, files: Mapping[str, bytes]) -> None:
        """`docker build -t NAME .` with the classic builder; `files` holds the Dockerfile and what it copies."""
        body = build_context(files)
        self.progress("POST", "/build", body=body, query={"t": name}, content_type="application/x-tar")

    def exports(self, since: float, until: float) -> int:
        """How many `docker save` the engine carried out in that time (seconds since the epoch), by its own events."""
        query = {
            "since": f"{since:.6f}",
            "until": f"{until:.6f}",
            "filters": json.dumps({"type": ["image"], "event": ["save"]}),
        }
        return len(self.call("GET", "/events", query=query).splitlines())


def _named(method: str, path: str, query: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of images and containers that the request removes, or gives to another image."""
    if method == "DELETE":
        name = unquote(path).partition("/")[2].partition("/")[2]
        yield from (name, f"{name}:latest")
    for repository, tag in ((query.get("repo"), query.get("tag")), (query.get("t"), "")):
        if repository:
            yield from (repository, f"{repository}:{tag or 'latest'}")


def build_context(files: Mapping[str, bytes]) -> bytes:
    """The tar of a directory to build from.  Every file is executable."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return context.getvalue()
