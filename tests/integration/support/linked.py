"""What tests of linked layers share: an image with all kinds of files, kind's node, and what is in a node."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence

from tests.integration.support import image, rig
from tests.integration.support.clusters import NODE_IMAGE, KindNode, build_node_image, running_kind_node
from tests.integration.support.daemon import program
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.images import PAUSE
from tests.integration.support.node import Node

# Prints all that a container sees of its files, but what differs from container to container: links, and what Docker
# and containerd put there.
LISTING = """
import hashlib, json, os, stat, sys, time
for top, directories, files in os.walk("/"):
    if top == "/":
        directories[:] = set(directories) - {"proc", "sys", "dev", "run"}
        files = []
    directories.sort()  # a file system has an order of its own
    for name in sorted([".", *directories, *files]):
        path = os.path.join(top, name)
        if path in ("/.", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/."):
            continue
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and name != ".":
            continue
        attributes = {each: os.getxattr(path, each, follow_symlinks=False).hex()
                      for each in os.listxattr(path, follow_symlinks=False)}
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        link = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
        content = ""
        if stat.S_ISREG(found.st_mode) and found.st_size < 100000:
            with open(path, "rb") as file:
                content = hashlib.md5(file.read()).hexdigest()
        print(json.dumps([path, found.st_mode, found.st_uid, found.st_gid, size, int(found.st_mtime), found.st_rdev,
                          attributes, link, content]))
sys.stdout.flush()
time.sleep(PAUSE)
""".replace("PAUSE", str(PAUSE))
# Every kind of file that layers have, in layers that hide those below: on the packages of Debian that nodes have.
DOCKERFILE = f"""
FROM {NODE_IMAGE}
COPY listing.py /listing.py
RUN mkdir -p /t/opaque/old /t/kept && touch /t/opaque/old/a /t/opaque/b /t/deleted /t/kept/a /t/kept/b \\
 && ln /t/kept/a /t/kept/same && mkfifo /t/fifo && mknod /t/device c 1 3 && ln -s kept/a /t/link \\
 && ln -s /nowhere /t/dangling && chown 1000:1001 /t/kept && chmod 2775 /t/kept && chmod 4755 /t/kept/b \\
 && python3 -c "import os; os.setxattr('/t/kept/a', 'user.note', b'1')" || true
RUN rm /t/deleted /t/kept/a && rm -r /t/opaque && mkdir /t/opaque && touch /t/opaque/new && rm -r /usr/share/doc
RUN python3 -c "import os, struct; os.setxattr('/t/kept/b', 'security.capability', \\
 struct.pack('<IIIII', 0x02000001, 1 << 13, 0, 0, 0))" && mkdir -p /etc/cron.d && echo x > /etc/cron.d/job
ENV EMPTY=layer
RUN true
ENTRYPOINT []
CMD ["python3", "/listing.py"]
"""
HOSTS = 'server = "http://127.0.0.1:1"\n[host."http://{host}"]\n  capabilities = ["pull", "resolve"]\n'


def build(engine: rig.EngineAddress, name: str, dockerfile: str, **files: bytes) -> None:
    """Build with the host's network.  Docker 20.10, which the tests' client does not reach, builds without BuildKit."""
    context = build_context({"Dockerfile": dockerfile.encode(), **files})
    if engine.name == "docker20":
        query = {"t": name, "networkmode": "host"}
        Docker(engine.socket).progress("POST", "/build", body=context, query=query, content_type="application/x-tar")
    else:
        image.client(engine, "build", "--network", "host", "--tag", name, "-", stdin=context)


@contextlib.contextmanager
def rich_image(engine: rig.EngineAddress) -> Iterator[str]:
    """An image with all kinds of files."""
    name = f"k3dreg-test-rich-{uuid.uuid4().hex[:8]}"
    build(engine, name, DOCKERFILE, **{"listing.py": LISTING.encode()})
    yield name
    Docker(engine.socket).remove(name)


def snapshots(node: Node) -> dict[str, str]:
    """Return the kinds of the node's snapshots by their names."""
    lines = [line.split() for line in node.ctr("snapshots", "ls").splitlines()[1:]]
    return {words[0]: words[-1] for words in lines}


def leases(node: Node) -> list[str]:
    return [line.split()[0] for line in node.ctr("leases", "ls").splitlines()[1:] if line.startswith("k3dreg-link")]


def blobs_sent(log: str) -> list[str]:
    return re.findall(r"GET \S+ blob sha256:\w+ 200 \S+, (\d+) bytes", log)


def listing_of(node: Node, name: str) -> list[str]:
    lines = node.run(f"docker.io/library/{name}:latest").splitlines()
    assert len(lines) > 1000
    return lines


@contextlib.contextmanager
def kind_node(engine: rig.EngineAddress, network: str = "host") -> Iterator[Mirrored]:
    """A node of kind in a network of the engine's, or in the machine's."""
    with running_kind_node(Docker(engine.socket), network) as node:
        yield Mirrored(node)


class Mirrored(KindNode):
    def __init__(self, node: KindNode) -> None:
        super().__init__(node.name, node.pid)

    def _enter(self) -> list[str]:
        # Below a plain chroot, the root directory of the container's mount namespace is this machine's.
        return [*super()._enter(), "--root"]

    def use_mirror(self, *hosts: str, scheme: str = "http", more: str = "") -> None:
        file = self.address.chroot / "etc/containerd/certs.d/_default/hosts.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(HOSTS.format(host=hosts[0]))


class LinkCommand:
    """A `k3dreg link IMAGE [NODE]...` under way."""

    def __init__(self, engine: rig.EngineAddress, *words: str, before: Sequence[str] = ()) -> None:
        """`before` are words that start the command."""
        self._process = subprocess.Popen(
            [*before, *program(), "link", "--docker", engine.url, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_layers(self, node: Node, count: int) -> None:
        """Wait until so many layers are linked into the node."""
        end = time.monotonic() + 30
        while sum(kind == "Committed" for kind in snapshots(node).values()) < count:
            assert self._process.poll() is None, self.ended()
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=60)

    def ended(self) -> tuple[int, str]:
        """Return the status and what was printed."""
        said, _ = self._process.communicate(timeout=120)
        print(said)
        return self._process.returncode, said


def prepare_kind(engine: rig.EngineAddress) -> None:
    """Build the nodes' image with the engine, unless it has it."""
    if Docker(engine.socket).inspect(NODE_IMAGE) is None:
        build_node_image(engine, "host")
