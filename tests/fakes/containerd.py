"""A containerd with snapshots in real directories, leases and a garbage collection, that answers over gRPC.

`tests/integration/test_linking.py` checks that the real one does the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
from attrs import define, field

from k3dreg.formats.protobuf import Message, integer_field, map_field
from k3dreg.formats.protobuf import field as encode

OVERLAY, BIND = "overlay", "bind"


class Refusal(Exception):
    """An error with the name of a gRPC status."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@define
class Snapshot:
    kind: str  # view, active, committed
    parent: str
    directory: Path


@define
class Lease:
    labels: dict[str, str]
    snapshots: set[str] = field(factory=set)


class FakeContainerd(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Listens at `socket` until `stop`.  `in_use` are the snapshots that an image refers to."""

    def __init__(self, root: Path, *, snapshotter: str = "overlayfs") -> None:
        self.root = root
        self.socket = str(root / "containerd.sock")
        self.snapshotter = snapshotter
        self.snapshots: dict[str, Snapshot] = {}
        self.leases: dict[str, Lease] = {}
        self.in_use: set[str] = set()
        self.calls: list[str] = []
        # Called before the method of this name, with its message.
        self.before: dict[str, Callable[[Message], None]] = {}
        (root / f"io.containerd.snapshotter.v1.{snapshotter}").mkdir()
        self._made = 0
        self._server = grpc.server(ThreadPoolExecutor(1))
        self._server.add_generic_rpc_handlers([self])
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        metadata = dict(handler_call_details.invocation_metadata)
        service = handler_call_details.method.split("/")[1].rpartition(".")[2]
        method: Callable[[Message, str], bytes] | None = getattr(self, f"_{service}_{name}", None)
        if method is None:
            return None
        self.calls.append(name)

        def answer(request: bytes, context: Any) -> bytes:
            message = Message(request)
            try:
                self.before.get(name, lambda message: None)(message)
                return method(message, metadata.get("containerd-lease", ""))
            except Refusal as refusal:
                context.abort(grpc.StatusCode[refusal.code], str(refusal))
                raise

        return grpc.unary_unary_rpc_method_handler(answer)

    # -- what tests ask and do ----------------------------------------------------------------------

    def committed(self, name: str, parent: str = "") -> Path:
        """Make a committed snapshot, and return its empty directory."""
        directory = self._directory()
        self.snapshots[name] = Snapshot("committed", parent, directory)
        self.in_use.add(name)
        return directory

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, each in self.snapshots.items() if each.kind == kind]

    def collect(self) -> None:
        """Remove every snapshot to which no image, no lease and no other snapshot refers."""
        wanted = self.in_use.union(*(lease.snapshots for lease in self.leases.values()))
        while unwanted := [
            name
            for name in self.snapshots
            if name not in wanted and all(each.parent != name for each in self.snapshots.values())
        ]:
            for name in unwanted:
                shutil.rmtree(self.snapshots.pop(name).directory.parent)

    # -- the services -------------------------------------------------------------------------------

    def _Snapshots_Prepare(self, message: Message, lease: str) -> bytes:
        labels = {each.text(1): each.text(2) for each in message.messages(4)}
        target = labels.get("containerd.io/snapshot.ref", "")
        if target in self.snapshots:
            self._hold(lease, target)
            raise Refusal("ALREADY_EXISTS", f"target snapshot {target!r}: already exists")
        return self._make("active", message, lease)

    def _Snapshots_View(self, message: Message, lease: str) -> bytes:
        return self._make("view", message, lease)

    def _Snapshots_Commit(self, message: Message, lease: str) -> bytes:
        name, key = message.text(2), message.text(3)
        self._find(key)
        if name in self.snapshots:
            raise Refusal("ALREADY_EXISTS", f"snapshot {name}: already exists")
        snapshot = self.snapshots[name] = self.snapshots.pop(key)
        snapshot.kind = "committed"
        self._release(key)
        self._hold(lease, name)
        return b""

    def _Snapshots_Remove(self, message: Message, lease: str) -> bytes:
        name = message.text(2)
        shutil.rmtree(self._find(name).directory.parent)
        del self.snapshots[name]
        self._release(name)
        return b""

    def _Snapshots_Usage(self, message: Message, lease: str) -> bytes:
        directory = self._find(message.text(2)).directory
        return integer_field(1, sum(each.lstat().st_size for each in directory.rglob("*") if each.is_file()))

    def _Leases_Create(self, message: Message, lease: str) -> bytes:
        if message.text(1) in self.leases:
            raise Refusal("ALREADY_EXISTS", "lease: already exists")
        self.leases[message.text(1)] = Lease({each.text(1): each.text(2) for each in message.messages(3)})
        return b""

    def _Leases_Delete(self, message: Message, lease: str) -> bytes:
        if self.leases.pop(message.text(1), None) is None:
            raise Refusal("NOT_FOUND", "lease: not found")
        self.collect()
        return b""

    def _Leases_List(self, message: Message, lease: str) -> bytes:
        return b"".join(encode(1, encode(1, name) + map_field(3, each.labels)) for name, each in self.leases.items())

    def _Leases_ListResources(self, message: Message, lease: str) -> bytes:
        if message.text(1) not in self.leases:
            raise Refusal("NOT_FOUND", "lease: not found")
        held = self.leases[message.text(1)].snapshots
        return b"".join(encode(1, encode(1, name) + encode(2, "snapshots/overlayfs")) for name in held)

    def _ImageService_ImageFsInfo(self, message: Message, lease: str) -> bytes:
        return encode(1, encode(2, encode(1, f"{self.root}/io.containerd.snapshotter.v1.{self.snapshotter}")))

    def _make(self, kind: str, message: Message, lease: str) -> bytes:
        key, parent = message.text(2), message.text(3)
        above = [self._find(parent).directory] if parent else []
        while parent := self.snapshots[parent].parent if parent else "":
            above.append(self.snapshots[parent].directory)
        directory = self._directory()
        self.snapshots[key] = Snapshot(kind, message.text(3), directory)
        self._hold(lease, key)
        if (kind == "view" and len(above) == 1) or (kind == "active" and not above):
            source, mode = (above[0], "ro") if above else (directory, "rw")
            return encode(1, encode(1, BIND) + encode(2, str(source)) + encode(4, mode) + encode(4, "rbind"))
        options = [f"lowerdir={':'.join(map(str, above))}"]
        if kind == "active":
            options = [f"workdir={directory.parent}/work", f"upperdir={directory}", *options]
        return encode(1, encode(1, OVERLAY) + encode(2, OVERLAY) + b"".join(encode(4, each) for each in options))

    def _directory(self) -> Path:
        self._made += 1
        directory = self.root / f"snapshots/{self._made}/fs"
        directory.mkdir(parents=True)
        return directory

    def _find(self, name: str) -> Snapshot:
        found = self.snapshots.get(name)
        if found is None:
            raise Refusal("NOT_FOUND", f"snapshot {name}: not found")
        return found

    def _release(self, name: str) -> None:
        for lease in self.leases.values():
            lease.snapshots.discard(name)

    def _hold(self, lease: str, name: str) -> None:
        if lease:
            if lease not in self.leases:
                raise Refusal("NOT_FOUND", f"lease {lease}: not found")
            self.leases[lease].snapshots.add(name)
