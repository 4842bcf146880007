"""k3dreg's own image, built by a real engine as its users build it."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.integration.support import rig
from tests.integration.support.docker_api import Docker
from tests.integration.support.rig import REPOSITORY, EngineAddress

IMAGE = "k3dreg-test-image:latest"
BASE = "k3dreg-test-base:latest"


def build(engine: EngineAddress, name: str = IMAGE, network: str = "host") -> str:
    """`docker build`, out of what `.dockerignore` lets through; returns the image's name.

    Most engines of the tests have no network of their own, so packages are fetched by this machine's.
    """
    context = _context()

    def build() -> None:
        words = ["build", "--network", network, "--build-arg", f"BASE={BASE}", "--tag", name, "-"]
        client(engine, *words, stdin=context)
        if name != IMAGE:
            Docker(engine.socket).tag(name, *IMAGE.split(":"))

    if not shared(engine, IMAGE, context, build) and name != IMAGE:
        Docker(engine.socket).tag(IMAGE, *name.split(":"))
    return name


def shared(engine: EngineAddress, name: str, context: bytes, build: Callable[[], object]) -> bool:
    """Let the engine have an image: load it if another engine has built it of the same files, else call `build`.

    A build installs packages for a minute, and loading takes seconds.  Returns whether it was built.
    """
    docker, base = Docker(engine.socket), Path(rig.setting("K3DREG_TEST_BASE"))
    if docker.inspect(BASE) is None:
        with base.open("rb") as file:
            query = {"fromSrc": "-", "repo": BASE.partition(":")[0], "tag": "latest"}
            docker.progress("POST", "/images/create", body=file, query=query, content_type="application/x-tar")
    short = name.partition(":")[0]
    kept = base.with_name(f"{short}-{_digest(context, base)}.tar")
    with rig.alone("images"):
        if kept.exists():
            with kept.open("rb") as file:
                docker.progress("POST", "/images/load", body=file, content_type="application/x-tar")
            return False
        build()
        for old in base.parent.glob(f"{short}-*.tar"):
            old.unlink()
        part = kept.with_suffix(".part")
        with docker.open("GET", "/images/get", query={"names": name}) as saved, part.open("wb") as file:
            shutil.copyfileobj(saved, file)
        part.rename(kept)
        return True


def _digest(context: bytes, base: Path) -> str:
    """Return a digest of the files of a build, and of its base."""
    found = hashlib.sha256(f"{base.stat().st_mtime_ns}".encode())
    with tarfile.open(fileobj=io.BytesIO(context)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            found.update(f"{member.name}\n{member.size}\n".encode() + (file.read() if file else b""))
    return found.hexdigest()[:16]


def client(engine: EngineAddress, *words: str, stdin: bytes, **variables: str) -> str:
    """Docker's command line client; returns what it prints."""
    command = [*shlex.split(rig.setting("K3DREG_TEST_DOCKER")), *words]
    environment = {**os.environ, "DOCKER_HOST": f"unix://{engine.inner_socket}", **variables}
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-5000:]
    return done.stdout.decode()


def compose(engine: EngineAddress, *words: str, **variables: str) -> str:
    """`docker compose`, with the file that is in this repository."""
    text = (REPOSITORY / "compose.yaml").read_bytes()
    return client(engine, "compose", "--file", "-", *words, stdin=text, **variables)


def _context() -> bytes:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    data = io.BytesIO()
    # The client looks at one block to see whether it is given a tar, so an entry may have only one.
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("Dockerfile", *(line[1:] for line in lines if line.startswith("!"))):
            tar.add(REPOSITORY / name, name, filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return data.getvalue()
