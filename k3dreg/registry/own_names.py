"""What this registry is called, and which names in Docker mean the same image.

One image has many names: pushed as `localhost:5005/app:t`, it is asked for by a node as `k3d-reg:5000/app:t` (then
without `ns`, as the node believes it is talking to the image's own registry), as `ns=k3d-reg:5005` or as
`ns=localhost:5005`.  All of these are this registry.  Pure: who learns the names is told where.
"""

from __future__ import annotations

from collections.abc import Iterable

from k3dreg.docker.containers import Container
from k3dreg.docker.image import ImageStore
from k3dreg.oci.errors import InvalidName, NotOurs
from k3dreg.oci.reference import DOCKER_HUB, Reference, Repository, registry_host

# The names by which programs on one machine, and pods in it, reach a port of that machine.  Docker takes pushes to
# `localhost` and all of 127.0.0.0/8 over plain HTTP; k3d writes the last into its nodes.
_THIS_MACHINE = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]", "host.k3d.internal", "host.docker.internal")  # noqa: S104

# The registry that Podman gives an image of its own which was named without one (`podman build -t my-image`).
_PODMANS_OWN = "localhost"

# k3d's labels on a registry's container (`pkg/types/types.go`: the prefix of the ports really is k3s).
_LABEL_HOST = "k3d.registry.host"
_LABEL_EXTERNAL_PORT = "k3s.registry.port.external"
_LABEL_INTERNAL_PORT = "k3s.registry.port.internal"


class OwnNames:
    """The hosts, each with its port, that are this registry.  More may be learned at any time."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        """As `tell`."""
        self._told: dict[str, None] = {}
        self._learned: dict[str, None] = {}
        self._hosts: dict[str, None] = {}
        self.tell(hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those of the settings first, each kind in the order in which it came: the first is tried first."""
        return tuple(self._hosts)

    def tell(self, hosts: Iterable[str]) -> None:
        """These are what the settings say, and no others any more.  Raises `InvalidName`, and then none is changed."""
        self._told = dict.fromkeys([registry_host(host) for host in hosts])
        self._hosts = {**self._told, **self._learned}

    def learn(self, hosts: Iterable[str]) -> tuple[str, ...]:
        """Add names; returns those that are new.  Raises `InvalidName`, and then none is added."""
        found = dict.fromkeys([registry_host(host) for host in hosts])
        new = tuple(host for host in found if host not in self._hosts)
        self._learned.update(found)
        self._hosts.update(found)
        return new

    def is_own(self, registry: str | None) -> bool:
        """Whether a client that says `ns=registry`, or says nothing, means this registry."""
        return registry is None or registry.lower() in self._hosts

    def is_own_host(self, name: str) -> bool:
        """Whether it is the host of one of the names, whatever their ports: forwarding may change these."""
        return any(host.rpartition(":")[0] == name for host in self._hosts)

    def own(self, repository: Repository) -> Repository:
        """The one spelling of a repository: this registry's own have no host, whatever the client called it."""
        if repository.registry is not None and self.is_own(repository.registry):
            return Repository(None, repository.path)
        return repository

    def ours(self, repository: Repository) -> Repository:
        """The one spelling of a repository of this registry's, to be pushed to.

        Raises `NotOurs` for one of another registry: what comes under its name comes from there, by way of Docker.
        """
        if not self.is_own(repository.registry):
            raise NotOurs(
                f"{repository} is another registry's",
                advice=f"a push says no ?ns=; if {repository.registry} is a name of this registry: --alias",
            )
        return Repository(None, repository.path)

    def in_engine(self, reference: Reference, store: ImageStore | None = None) -> tuple[Reference, ...]:
        """The names to look for in an engine with this store, in order.

        A reference to this registry may be in Docker under any of its names (an image that was tagged for a push, or
        pushed), or under its bare name (one that was only built), unless that one is of another registry, too:
        `ghcr.io/team/app`.  Any other reference has one name.

        In Podman an image that was built as `my-image` is `localhost/my-image`, and a node, which takes the same short
        name for Docker Hub's, asks for `docker.io/library/my-image`.  Where there are both, Podman takes its own, and
        so does this.  It does so by itself for a bare name.
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
    """How a person calls what Podman, which writes all names in full, calls `repository`."""
    if repository.registry == DOCKER_HUB:
        return Repository(None, repository.path.removeprefix("library/"))
    return Repository(None, repository.path) if repository.registry == _PODMANS_OWN else repository


def names_of_machine(ports: Iterable[int], hostname: str = "") -> tuple[str, ...]:
    """What a registry that listens on `ports` of this machine is called, by programs on it and in its containers."""
    names = (*_THIS_MACHINE, hostname) if hostname else _THIS_MACHINE
    return tuple(f"{name}:{port}" for port in ports for name in names)


def names_of_container(container: Container, hostname: str, ports: Iterable[int]) -> tuple[str, ...]:
    """Return what a registry is called that runs in `container`, where it listens on `ports`.

    `hostname` is that of this process.  Empty when it runs in no such container: a machine's name may be some
    container's.
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
