"""The names of this registry, and which names in Docker mean the same image.

One image has many names: pushed as `localhost:5005/app:t`, it is requested by a node as `k3d-reg:5000/app:t` (then
without `ns`, as the node believes that it is talking to the image's own registry), with `ns=k3d-reg:5005` or with
`ns=localhost:5005`.  All of these hosts are this registry.  This module does no I/O: see `own_name_discovery`.
"""

from __future__ import annotations

from collections.abc import Iterable

from k3dreg.docker.containers import Container
from k3dreg.docker.image import ImageStore
from k3dreg.oci.errors import InvalidName, NotOurs
from k3dreg.oci.reference import DOCKER_HUB, Reference, Repository, registry_host

# Names by which programs on a machine, and pods in it, reach a port of the machine.  Docker pushes to `localhost` and
# all of 127.0.0.0/8 over plain HTTP; k3d writes `host.k3d.internal` into its nodes.
_THIS_MACHINE = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]", "host.k3d.internal", "host.docker.internal")  # noqa: S104

# The registry in Podman's name for a local image that was named without one (`podman build -t my-image`).
_PODMANS_OWN = "localhost"

# k3d's labels on a registry's container (`pkg/types/types.go`: the prefix of the ports really is k3s).
_LABEL_HOST = "k3d.registry.host"
_LABEL_EXTERNAL_PORT = "k3s.registry.port.external"
_LABEL_INTERNAL_PORT = "k3s.registry.port.internal"


class OwnNames:
    """The hosts, each with its port, that mean this registry.  `learn` may add some at any time."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        """`hosts` are those of the settings, as for `tell`.  Raises `InvalidName`."""
        self._told: dict[str, None] = {}
        self._learned: dict[str, None] = {}
        self._hosts: dict[str, None] = {}
        self.tell(hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts in the order in which they are tried: those of the settings, then those that were learned."""
        return tuple(self._hosts)

    def tell(self, hosts: Iterable[str]) -> None:
        """Replace the hosts of the settings; learned ones stay.  Raises `InvalidName`, and then changes none."""
        self._told = dict.fromkeys([registry_host(host) for host in hosts])
        self._hosts = {**self._told, **self._learned}

    def learn(self, hosts: Iterable[str]) -> tuple[str, ...]:
        """Add hosts and return those that are new.  Raises `InvalidName`, and then adds none."""
        found = dict.fromkeys([registry_host(host) for host in hosts])
        new = tuple(host for host in found if host not in self._hosts)
        self._learned.update(found)
        self._hosts.update(found)
        return new

    def is_own(self, registry: str | None) -> bool:
        """Return whether a client that sends `ns=registry`, or no `ns` (None), means this registry."""
        return registry is None or registry.lower() in self._hosts

    def is_own_host(self, name: str) -> bool:
        """Return whether `name` is the host of one of the names, whatever its port: forwarding may change the port."""
        return any(host.rpartition(":")[0] == name for host in self._hosts)

    def own(self, repository: Repository) -> Repository:
        """Return the repository without its host if that means this registry; any other repository unchanged."""
        if repository.registry is not None and self.is_own(repository.registry):
            return Repository(None, repository.path)
        return repository

    def ours(self, repository: Repository) -> Repository:
        """Return the repository of this registry to push to, without a host.

        Raises `NotOurs` for a repository of another registry: its content comes from there, through Docker.
        """
        if not self.is_own(repository.registry):
            raise NotOurs(
                f"{repository} is another registry's",
                advice=f"push without ?ns=, or if {repository.registry} is a name of this registry, add it by --alias",
            )
        return Repository(None, repository.path)

    def in_engine(self, reference: Reference, store: ImageStore | None = None) -> tuple[Reference, ...]:
        """Return the names to look for in an engine with this store, in order.

        An image of this registry may be in Docker under any of the registry's hosts (if it was tagged for a push), or
        under its bare path (if it was only built).  A bare path such as `ghcr.io/team/app` names an image of another
        registry in Docker, so it is left out.  Any other reference has one name.

        Podman names an image that was built as `my-image` `localhost/my-image`.  A node reads the same short name as
        Docker Hub's and requests `docker.io/library/my-image`.  If there are both, Podman prefers its own, so that one
        is first.  For a bare name Podman does this by itself.
        """
        path, target = reference.repository.path, reference.target
        if not self.is_own(reference.repository.registry):
            if store is ImageStore.PODMAN and reference.repository.registry == DOCKER_HUB:
                return (Reference(Repository(_PODMANS_OWN, path.removeprefix("library/")), target), reference)
            return (reference,)
        said = () if reference.repository.registry is None else (reference.repository.registry.lower(),)
        hosts = dict.fromkeys((*said, *self._hosts))
        own = tuple(Reference(Repository(host, path), target) for host in hosts)
        bare = Repository(None, path)
        return own if bare.in_path is not None else (*own, Reference(bare, target))


def short_name(repository: Repository) -> Repository:
    """Return the short name that a user types for `repository`: Podman lists all names in full."""
    if repository.registry == DOCKER_HUB:
        return Repository(None, repository.path.removeprefix("library/"))
    return Repository(None, repository.path) if repository.registry == _PODMANS_OWN else repository


def names_of_machine(ports: Iterable[int], hostname: str = "") -> tuple[str, ...]:
    """Return the names of a registry on `ports` of this machine, for programs on it and in its containers."""
    names = (*_THIS_MACHINE, hostname) if hostname else _THIS_MACHINE
    return tuple(f"{name}:{port}" for port in ports for name in names)


def names_of_container(container: Container, hostname: str, ports: Iterable[int]) -> tuple[str, ...]:
    """Return the names of a registry that runs in `container` and listens on `ports` there.

    `hostname` is that of this process.  The result is empty when it is not the container's hostname: the engine also
    finds containers by name, and the machine's hostname may be the name of an unrelated container.
    """
    if container.hostname != hostname:
        return ()
    labels = container.labels
    inner = [*map(str, ports), *_given(labels.get(_LABEL_INTERNAL_PORT))]
    outer = [
        *(on_host for inside, on_host in container.tcp_ports if inside in inner),
        *_given(labels.get(_LABEL_EXTERNAL_PORT)),
    ]
    called = [*_given(labels.get(_LABEL_HOST)), container.name, hostname, *container.aliases]
    found = [f"{name}:{port}" for port in outer for name in (*_THIS_MACHINE, *called)]
    found += [f"{name}:{port}" for port in inner for name in called]
    return tuple(dict.fromkeys(name.lower() for name in found if _is_host(name)))


def _given(label: str | None) -> tuple[str, ...]:
    return (label,) if label else ()


def _is_host(host: str) -> bool:
    try:
        registry_host(host)
    except InvalidName:
        return False
    return True
