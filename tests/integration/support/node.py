"""A Kubernetes node's containerd: pulls through its CRI plugin as a kubelet does, and runs what was pulled.

The few CRI messages needed (k8s.io/cri-api, runtime/v1/api.proto) are put together by hand: a message is a list of
fields, and all of these are strings or messages.
"""

from __future__ import annotations

import subprocess
import time
import uuid

import grpc  # type: ignore[import-untyped,unused-ignore]

from tests.integration.support import rig
from tests.integration.support.rig import NodeAddress


class PullFailed(Exception):
    """The node says why it could not pull."""


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, rest = b"", len(value)
    while rest > 0x7F:
        length += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + value


def _image_spec(image: str) -> bytes:
    # PullImageRequest.image and RemoveImageRequest.image are field 1; ImageSpec.image is field 1.
    return _field(1, _field(1, image.encode()))


class Node:
    """One containerd."""

    def __init__(self, address: NodeAddress) -> None:
        """Fail for a node of the rig that tests of other processes may use meanwhile: they change its mirrors."""
        alone = address not in rig.nodes() or rig.is_alone(address.name)
        assert alone, f"the test does not keep the others from {address.name}: see `_nodes_of` in conftest.py"
        self.address = address
        self.name = address.name

    def use_mirror(self, *hosts: str, scheme: str = "http", more: str = "") -> None:
        """Let every pull go to `http://HOST`, to one after the other, and nowhere else.

        So a failure there is not made good by the origin.  `more` are lines about the last of the hosts.
        The node reads this file anew at each pull.
        """
        directory = self.address.directory / "certs.d/_default"
        directory.mkdir(parents=True, exist_ok=True)
        # `server` is the host that is asked last, in the place of the image's own registry.  Nothing is on port 1.
        text = 'server = "http://127.0.0.1:1"\n'
        for host in hosts:
            text += f'[host."{scheme}://{host}"]\n  capabilities = ["pull", "resolve"]\n'
        (directory / "hosts.toml").write_text(text + more)

    def use_mirror_first(self, host: str) -> None:
        """Let every pull go to `http://HOST`, and then to the image's own registry."""
        directory = self.address.directory / "certs.d/_default"
        directory.mkdir(parents=True, exist_ok=True)
        text = f'[host."http://{host}"]\n  capabilities = ["pull", "resolve"]\n'
        (directory / "hosts.toml").write_text(text)

    def use_no_mirror(self) -> None:
        """Let every pull go to the image's own registry."""
        (self.address.directory / "certs.d/_default/hosts.toml").unlink(missing_ok=True)

    def _call(self, method: str, message: bytes, seconds: float = 300) -> bytes:
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix://{self.address.socket}", options=options) as channel:
            answer: bytes = channel.unary_unary(f"/runtime.v1.ImageService/{method}")(message, timeout=seconds)
        return answer

    def pull(self, image: str, username: str = "", password: str = "") -> float:
        """PullImage, with a pod's imagePullSecret if given.  Returns the seconds it took.  Raises `PullFailed`."""
        started = time.monotonic()
        message = _image_spec(image)
        if username:
            # PullImageRequest.auth; AuthConfig has the two in this order.
            message += _field(2, _field(1, username.encode()) + _field(2, password.encode()))
        try:
            self._call("PullImage", message)
        except grpc.RpcError as error:
            raise PullFailed(error.details()) from error
        return time.monotonic() - started

    def remove(self, image: str) -> None:
        """RemoveImage, as a kubelet calls it for an unused image when the node's disk is nearly full."""
        self._call("RemoveImage", _image_spec(image))

    def ctr(self, *arguments: str, seconds: float = 120) -> str:
        """containerd's own command line client, in the node's file system.  Returns what it prints."""
        return self._ctr(*arguments, seconds=seconds).decode()

    def _enter(self) -> list[str]:
        """Return the words before a command that run it where containerd runs."""
        return ["chroot", str(self.address.chroot)]

    def _ctr(self, *arguments: str, seconds: float = 120) -> bytes:
        command = [*self._enter(), "ctr", "-a", self.address.inner_socket, "-n", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        assert done.returncode == 0, f"{self.name}: ctr {' '.join(arguments)}\n{done.stderr.decode()}"
        return done.stdout

    def run(self, image: str, *command: str) -> str:
        """Start a container of the image, with its own command by default, and return what it prints."""
        return self.ctr("run", "--rm", "--net-host", image, f"k3dreg-test-{uuid.uuid4().hex[:12]}", *command)

    def digest(self, image: str) -> str:
        """The digest that the node resolved the image's name to."""
        for line in self.ctr("images", "ls").splitlines():
            words = line.split()
            if words and words[0] == image:
                return words[2]
        raise AssertionError(f"{self.name} has no {image}")

    def contents(self) -> set[str]:
        """The digests of everything the node holds."""
        return set(self.ctr("content", "ls", "-q").split())

    def content(self, digest: str) -> bytes:
        """The bytes that the node holds by that digest."""
        return self._ctr("content", "get", digest)

    def clean(self) -> None:
        """Forget all images and their content, so the next pull fetches everything."""
        images = self.ctr("images", "ls", "-q").split()
        if images:
            self.ctr("images", "rm", "--sync", *images)
        self.ctr("content", "prune", "references")
        left = self.contents()
        if left:
            self.ctr("content", "rm", *left)
