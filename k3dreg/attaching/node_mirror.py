"""Read and change the files by which a node's containerd knows its mirrors.

containerd reads `hosts.toml` at each pull.  k3s writes it anew from `registries.yaml` when it starts, so on k3s both
are changed.  Every change is computed before the first is written.  A rename in the node replaces each file at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from attrs import frozen

from k3dreg.attaching.attaching_errors import CannotAttach, NoMirrorFiles
from k3dreg.attaching.hosts_file import (
    add_host,
    config_paths,
    hosts_of,
    is_of_k3s,
    marked_hosts,
    remove_host,
)
from k3dreg.attaching.registries_file import add_endpoint, marked_endpoints, mirrored_hosts, remove_endpoint
from k3dreg.clusters.cluster_nodes import ClusterNode
from k3dreg.clusters.nodes import K3D, MINIKUBE
from k3dreg.docker import containers
from k3dreg.docker.container_commands import run
from k3dreg.docker.container_files import SmallFile, read_file, write_file
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.formats.text import one_line
from k3dreg.oci.errors import EngineError, FileAbsent

# Bytes of a file of settings.  Those of clusters with many mirrors have a few kilobytes.
_LARGEST = 256 * 1024
# Where k3s has containerd's directories of mirrors, before it has written containerd's settings.
_K3S_CERTS = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"
# The directory of the mirrors of all registries that have no directory of their own (containerd, docs/hosts.md).
_EVERY = "/_default"
_CRICTL = "/etc/crictl.yaml"
_SUFFIX = ".k3dreg"
_NO_CONFIG_PATH = (
    "create the cluster with containerdConfigPatches, as `k3dreg config {0}` prints it, or set config_path in the "
    "node's {1} and restart its containerd"
)


@frozen
class Mirror:
    """The mirrors of all registries that a node's containerd has, in the order in which it asks them.

    `attached` are those that `attach` added.
    """

    attached: tuple[str, ...]
    hosts: tuple[str, ...]


@frozen
class _Found:
    """A file as it is in the node.  `file` is None, and `text` "", for a file that is missing."""

    path: str
    file: SmallFile | None
    text: str


async def read_mirror(engine: IEngineRequests, node: ClusterNode) -> Mirror:
    """Return the mirrors of a node, which need not run.  Raises `CannotAttach` and `EngineError`."""
    hosts = await _hosts_file(engine, node)
    registries = await _read(engine, node, node.kind.registries)
    found = dict.fromkeys((*marked_hosts(hosts.text), *marked_endpoints(registries.text)))
    return Mirror(tuple(found), hosts_of(hosts.text))


async def attach_node(engine: IEngineRequests, node: ClusterNode, url: str) -> tuple[bool, Sequence[str]]:
    """Make `url` the first mirror of all registries of a running node.

    Returns whether a file was changed, and sentences that the user should know.  Raises `CannotAttach` and
    `EngineError`.
    """
    await _check_runtime(engine, node)
    hosts = await _hosts_file(engine, node)
    registries = await _read(engine, node, node.kind.registries)
    changes, notes = [], []
    if hosts.path:
        changes.append((hosts, add_host(hosts.text, url)))
    else:
        notes.append(f"k3s {node.name} uses the mirror when it is started again: k3d cluster stop and start")
    # k3s replaces a hosts.toml that is not its own as soon as registries.yaml has the mirror "*".  Without it, k3s
    # leaves the file as it is.
    if registries.path and (is_of_k3s(hosts.text) or not remove_host(hosts.text)):
        changes.append((registries, add_endpoint(registries.text, url)))
        others = [host for host in mirrored_hosts(registries.text) if ":" not in host]
        if others:
            notes.append(f"{', '.join(others)}: nodes use the mirrors that registries.yaml has for these, not k3dreg")
    return await _write(engine, node, changes), notes


async def detach_node(engine: IEngineRequests, node: ClusterNode) -> bool:
    """Remove from a running node what `attach_node` added, and return whether there was anything.

    Raises `CannotAttach` and `EngineError`.
    """
    hosts = await _hosts_file(engine, node)
    registries = await _read(engine, node, node.kind.registries)
    changes = [(registries, remove_endpoint(registries.text))] if registries.path else []
    if hosts.path:
        changes.append((hosts, remove_host(hosts.text, marked_endpoints(registries.text))))
    return await _write(engine, node, changes)


async def _check_runtime(engine: IEngineRequests, node: ClusterNode) -> None:
    """Raise `CannotAttach` for a node of minikube whose kubelet does not use containerd."""
    if node.kind is MINIKUBE:
        crictl = await _read(engine, node, _CRICTL)
        if "containerd.sock" not in crictl.text:
            raise CannotAttach(
                "its container runtime is not containerd, and Docker uses mirrors for Docker Hub's images only",
                advice="minikube start --container-runtime=containerd",
            )


async def _hosts_file(engine: IEngineRequests, node: ClusterNode) -> _Found:
    """Return the `hosts.toml` for all registries; its path is "" if k3s gives containerd no directory for it.

    Raises `CannotAttach` for another node without such a directory.
    """
    config = await _read(engine, node, node.kind.config)
    if config.file is None and node.kind is K3D:
        directories: Sequence[str] = (_K3S_CERTS,)
    else:
        directories = config_paths(config.text)
    if directories:
        if not directories[0].isprintable():
            raise CannotAttach("its containerd's config_path has characters that cannot be printed")
        return await _read(engine, node, f"{directories[0].rstrip('/')}{_EVERY}/hosts.toml")
    if node.kind is K3D:
        return _Found("", None, "")
    raise NoMirrorFiles(
        "its containerd has no config_path, so it reads no mirrors from files",
        advice=_NO_CONFIG_PATH.format(node.kind.name, node.kind.config),
    )


async def _read(engine: IEngineRequests, node: ClusterNode, path: str) -> _Found:
    file = await read_file(engine, node.id, path, _LARGEST) if path else None
    try:
        return _Found(path, file, file.data.decode() if file is not None else "")
    except UnicodeDecodeError as error:
        raise CannotAttach(f"{path} is not UTF-8") from error


async def _write(engine: IEngineRequests, node: ClusterNode, changes: Sequence[tuple[_Found, str]]) -> bool:
    wanted = [(found, text) for found, text in changes if text != found.text]
    if not wanted:
        return False
    container = await containers.inspect(engine, node.id)
    for found, _ in wanted:
        for source, destination in container.binds if container is not None else ():
            if f"{found.path}/".startswith(f"{destination.rstrip('/')}/"):
                raise CannotAttach(
                    f"{found.path} lies on the host, in {source}, which k3dreg does not change",
                    advice="change it there: `k3dreg config` prints what belongs into it",
                )
    # All new files are there before the first takes its place, so that a full disk changes none.
    written = [(found, text) for found, text in wanted if text]
    try:
        for found, text in written:
            directory, _, name = found.path.rpartition("/")
            if found.file is None:
                await _do(engine, node, 'mkdir -p "$1"', directory)
            was = found.file or SmallFile(b"")
            made = SmallFile(text.encode(), was.mode, was.user, was.group)
            await write_file(engine, node.id, directory, name + _SUFFIX, made)
        for found, _ in written:
            await _do(engine, node, 'mv -f "$1" "$2"', found.path + _SUFFIX, found.path)
    except BaseException as error:
        with contextlib.suppress(CannotAttach, EngineError):
            await _do(engine, node, 'rm -f "$@"', *(found.path + _SUFFIX for found, _ in written))
        if isinstance(error, FileAbsent):
            raise CannotAttach(str(error)) from error
        raise
    for found, text in wanted:
        if not text:
            directory = found.path.rpartition("/")[0]
            await _do(engine, node, 'rm -f "$1"', found.path)
            if directory.endswith(_EVERY):
                await _do(engine, node, 'rmdir "$1" 2>/dev/null || :', directory)
    return True


async def _do(engine: IEngineRequests, node: ClusterNode, script: str, *arguments: str) -> None:
    done = await run(engine, node.id, "sh", "-c", script, "sh", *arguments)
    if done.status:
        raise CannotAttach(f"a command in the node failed: {one_line(done.output)[:200]}")
