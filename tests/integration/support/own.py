"""A person's own Docker (K3DREG_TEST_ENGINE): what is in it stays as it is, and what the tests made is removed."""

from __future__ import annotations

import struct
import time
from pathlib import Path

from tests.integration.support.docker_api import Docker

BUSYBOXES = ("/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox")


def contents(docker: Docker) -> set[str]:
    """Return a line for each image, each name of an image, container, volume and network of the engine."""
    images = docker.ask("GET", "/images/json", all="1")
    found = {f"image {image['Id']}" for image in images}
    for image in images:
        for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
            if not name.startswith("<none>"):
                found.add(f"name {name} of image {image['Id']}")
    found.update(f"container {each['Id']} {each['Names']}" for each in docker.ask("GET", "/containers/json", all="1"))
    found.update(f"volume {each['Name']}" for each in docker.ask("GET", "/volumes")["Volumes"] or ())
    found.update(f"network {each['Id']} {each['Name']}" for each in docker.ask("GET", "/networks"))
    return found


def names(docker: Docker) -> frozenset[str]:
    """Return the names by which the engine's images and containers can be removed, or given to another image."""
    found: set[str] = set()
    for image in docker.ask("GET", "/images/json", all="1"):
        found.update((image["Id"], *(image["RepoTags"] or ()), *(image["RepoDigests"] or ())))
    for container in docker.ask("GET", "/containers/json", all="1"):
        found.update((container["Id"], *(name.removeprefix("/") for name in container["Names"])))
    return frozenset(found)


def remove_images_of(docker: Docker, registry: str) -> None:
    """Remove the names that images have from `registry` (HOST:PORT), which no image has without the tests."""
    for image in docker.ask("GET", "/images/json", all="1"):
        for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
            if name.startswith(f"{registry}/"):
                docker.remove(name)


def wait_until_it_has(docker: Docker, before: set[str], seconds: float = 20) -> str:
    """Wait until the engine's contents are `before`, since it removes in its own time.

    Returns what is left or gone after that time; "" where that is nothing.
    """
    end = time.monotonic() + seconds
    while (now := contents(docker)) != before:
        if time.monotonic() > end:
            lines = [f"left: {line}" for line in sorted(now - before)] + [
                f"gone: {line}" for line in sorted(before - now)
            ]
            return "\n".join(lines)
        time.sleep(0.5)
    return ""


def static_busybox() -> bytes | None:
    """Return this machine's busybox, if it runs without libraries."""
    for path in map(Path, BUSYBOXES):
        if path.is_file() and not _interpreter(data := path.read_bytes()):
            return data
    return None


def _interpreter(program: bytes) -> bool:
    """Return whether an ELF program of 64 bits names a dynamic loader (PT_INTERP; elf(5)), or is none."""
    if program[:6] != b"\x7fELF\x02\x01":
        return True
    (offset,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    return any(struct.unpack_from("<I", program, offset + number * size)[0] == 3 for number in range(count))
