"""A client of containerd's snapshots and leases, over gRPC.

The messages are in containerd's repository: `api/services/snapshots/v1/snapshots.proto`,
`api/services/leases/v1/leases.proto`, `api/types/mount.proto`; the CRI's in `k8s.io/cri-api/pkg/apis/runtime/v1`.  They
consist of strings and other messages, so `formats.protobuf` encodes them, and no generated code is needed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from k3dreg.formats.protobuf import Message, field, map_field
from k3dreg.linking.linking_errors import CannotLink

SNAPSHOTTER = "overlayfs"
# The label by which a client says which snapshot it is about to make (containerd, core/snapshots/snapshotter.go).
# containerd answers "already exists" when there is one, and puts that into the request's lease.
_REFERENCE = "containerd.io/snapshot.ref"
_EXPIRES = "containerd.io/gc.expire"
# Seconds.  A healthy containerd answers within milliseconds; to commit a layer, it counts its files.
_MAX_WAIT = 10.0
_MAX_WAIT_FOR_COMMIT = 60.0
_LARGEST_ANSWER = 16 * 1024 * 1024
# In an answer, as Go words ENOSPC.
_DISK_FULL = "no space left on device"


class AlreadyExists(Exception):
    """containerd has the snapshot."""


class SnapshotUnknown(Exception):
    """containerd has no such snapshot."""


@frozen
class SnapshotMount:
    """How a snapshot is mounted (mount(2)).  `lower` are the directories of an overlay, the highest first."""

    type: str
    source: str
    options: tuple[str, ...]

    @property
    def lower(self) -> tuple[str, ...]:
        found = self._option("lowerdir")
        return tuple(found.split(":")) if found else ()

    @property
    def upper(self) -> str:
        """The directory that takes what is written."""
        return self._option("upperdir") or ("" if self.lower else self.source)

    def _option(self, name: str) -> str:
        beginning = f"{name}="
        return next((each[len(beginning) :] for each in self.options if each.startswith(beginning)), "")


class Containerd:
    """A connection to one containerd.  Every method blocks, and raises `CannotLink` if containerd does not answer.

    `where` names it in errors.  Close it in the end.
    """

    def __init__(self, socket: str, namespace: str, where: str) -> None:
        """`socket` is the path of its UNIX socket.  Raises `CannotLink` if the Python package grpcio is missing."""
        try:
            import grpc  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise CannotLink(
                "the Python package grpcio is missing: pip install '.[link]' in a clone of k3dreg"
            ) from None
        self._grpc: Any = grpc
        self._where = where
        self._namespace = ("containerd-namespace", namespace)
        options = [
            # containerd accepts no other; the default would be the path of the socket.
            ("grpc.default_authority", "localhost"),
            ("grpc.max_receive_message_length", _LARGEST_ANSWER),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Containerd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- snapshots ----------------------------------------------------------------------------------

    def view(self, key: str, parent: str, lease: str) -> SnapshotMount:
        """Make a read-only view of the snapshot `parent` in a lease.  Raises `SnapshotUnknown`."""
        return self._mount("View", key, parent, {}, lease)

    def prepare(self, key: str, parent: str, name: str, lease: str) -> SnapshotMount:
        """Make an active snapshot, in a lease, that shall become the snapshot `name`.

        Raises `AlreadyExists` if `name` exists, which then is in the lease, and `SnapshotUnknown` without the parent.
        """
        return self._mount("Prepare", key, parent, {_REFERENCE: name}, lease)

    def commit(self, key: str, name: str, lease: str) -> None:
        """Make the active snapshot `key` the snapshot `name`, in the same lease.  Raises `AlreadyExists`."""
        message = field(1, SNAPSHOTTER) + field(2, name) + field(3, key) + map_field(4, {_REFERENCE: name})
        self._snapshots("Commit", message, lease, _MAX_WAIT_FOR_COMMIT)

    def remove(self, key: str) -> None:
        """Remove a snapshot and its directory.  It is no error if there is none."""
        with contextlib.suppress(SnapshotUnknown):
            self._snapshots("Remove", field(1, SNAPSHOTTER) + field(2, key))

    def usage(self, key: str) -> int:
        """Return the bytes on the disk of a snapshot, without those of its parents.  Raises `SnapshotUnknown`."""
        return self._snapshots("Usage", field(1, SNAPSHOTTER) + field(2, key)).number(1)

    def _mount(self, method: str, key: str, parent: str, labels: Mapping[str, str], lease: str) -> SnapshotMount:
        message = field(1, SNAPSHOTTER) + field(2, key) + field(3, parent) + map_field(4, labels)
        mounts = self._snapshots(method, message, lease).messages(1)
        if len(mounts) != 1:
            raise CannotLink(f"{self._where} mounts a snapshot in {len(mounts)} steps")
        return SnapshotMount(mounts[0].text(1), mounts[0].text(2), tuple(mounts[0].texts(4)))

    def _snapshots(self, method: str, message: bytes, lease: str = "", seconds: float = _MAX_WAIT) -> Message:
        return self._call(f"/containerd.services.snapshots.v1.Snapshots/{method}", message, lease, seconds)

    # -- leases -------------------------------------------------------------------------------------

    def create_lease(self, lease: str, seconds: float) -> None:
        """Create a lease, which keeps what is made in it from containerd's garbage collection for `seconds`."""
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        self._leases("Create", field(1, lease) + map_field(3, {_EXPIRES: expires}))

    def leases(self, beginning: str) -> list[str]:
        """Return the leases whose IDs begin with `beginning`."""
        found = (lease.text(1) for lease in self._leases("List", b"").messages(1))
        return [lease for lease in found if lease.startswith(beginning)]

    def leased(self, lease: str) -> list[str]:
        """Return the names of what a lease keeps; none for an unknown lease."""
        with contextlib.suppress(SnapshotUnknown):
            return [each.text(1) for each in self._leases("ListResources", field(1, lease)).messages(1)]
        return []

    def delete_lease(self, lease: str) -> None:
        """Delete a lease.  What nothing else refers to is then collected."""
        with contextlib.suppress(SnapshotUnknown):
            self._leases("Delete", field(1, lease))

    def _leases(self, method: str, message: bytes) -> Message:
        return self._call(f"/containerd.services.leases.v1.Leases/{method}", message, "", _MAX_WAIT)

    # -- CRI ----------------------------------------------------------------------------------------

    def image_file_systems(self) -> list[str]:
        """Return the directories in which the kubelet's images are, one for each snapshotter that it uses."""
        answer = self._call("/runtime.v1.ImageService/ImageFsInfo", b"", "", _MAX_WAIT)
        return [each.message(2).text(1) for each in answer.messages(1)]

    def _call(self, path: str, message: bytes, lease: str, seconds: float) -> Message:
        metadata = [self._namespace, *([("containerd-lease", lease)] if lease else [])]
        codes = self._grpc.StatusCode
        try:
            answer: bytes = self._channel.unary_unary(path)(message, timeout=seconds, metadata=metadata)
            return Message(answer)
        except self._grpc.RpcError as error:
            if error.code() == codes.ALREADY_EXISTS:
                raise AlreadyExists(error.details()) from error
            if error.code() == codes.NOT_FOUND:
                raise SnapshotUnknown(error.details()) from error
            if (error.details() or "").endswith(_DISK_FULL):
                raise CannotLink(f"the disk of {self._where} is full") from error
            raise CannotLink(f"{self._where} refuses {path.rpartition('/')[2]}: {error.details()}") from error
        except ValueError as error:
            raise CannotLink(f"{self._where} gives an answer that does not parse: {error}") from error
