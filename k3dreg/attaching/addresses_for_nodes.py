"""Find the address by which a node reaches k3dreg, and put k3dreg's container into the node's network if need be."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from k3dreg.attaching.attaching_errors import CannotAttach
from k3dreg.clusters.cluster_nodes import ClusterNode
from k3dreg.docker import containers
from k3dreg.docker.container_commands import run
from k3dreg.docker.containers import Container, ListedContainer
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.reach import connect, disconnect
from k3dreg.formats.text import one_line

# The name that k3dreg's container gets in a network that it joins for a cluster, by which `leave` recognizes it.
JOINED = "k3dreg-attach"
_INTERNAL_PORT = "k3s.registry.port.internal"  # k3d's label on a registry
_DEFAULT_PORT = 5000
# In a network without names, and in the host's own.
_NAMELESS, _HOST = "bridge", "host"
_DESKTOP = "host.docker.internal"

# Requests `/healthz` to recognize k3dreg, and then what tells whether reading needs a password, by what the node has:
# BusyBox's wget in k3s, curl in kind and minikube.
_PROBE = r"""
get() {
  if command -v wget >/dev/null 2>&1; then wget -q -T 5 -O - "http://$1:$2$3" 2>&1
  elif command -v curl >/dev/null 2>&1; then curl -fsS -m 5 "http://$1:$2$3" 2>&1
  elif command -v bash >/dev/null 2>&1; then
    timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$3" "$1" >&3 &&
      cat <&3' bash "$1" "$2" "$3" 2>&1
  else echo 'the node has neither wget nor curl nor bash to try it'; return 1
  fi
}
get "$1" "$2" /healthz && get "$1" "$2" '/v2/_catalog?n=1'
"""
# As wget and bash print it, and curl.
_UNAUTHORIZED = re.compile(r"(HTTP/1\.[01]|returned error:) 401\b")


@frozen
class Address:
    """A way to k3dreg: a host and port that nodes may reach.

    `container` is the name of k3dreg's container, "" if it runs on the host.  `joins` is the network that the container
    is not in yet, "" for none.  `advice` is what to do if no node reaches it.
    """

    host: str
    port: int
    container: str = ""
    joins: str = ""
    advice: str = ""

    @property
    def url(self) -> str:
        """The URL for nodes."""
        return f"http://{self.host}:{self.port}"


@frozen
class Addresses:
    """The places where k3dreg may run.

    `ports` are those on which this k3dreg speaks plain HTTP, in its own container or on the host.  `hostname` is that
    of this process, by which the engine finds the container that it runs in.  With `searches`, k3dreg may also run in
    another container: the process is not the daemon, but a command.  `trouble` is why no node reaches this k3dreg, ""
    if there is no reason.
    """

    engine: IEngineRequests
    hostname: str
    ports: Sequence[int]
    trouble: str = ""
    searches: bool = False

    async def find(self, node: ClusterNode) -> Address:
        """Return an address that the node has reached in a test request.

        k3dreg's container joins the node's network for it, and stays there if the node reaches k3dreg.
        Raises `CannotAttach` if the node reaches k3dreg by no address, and `EngineError`.
        """
        tried, advice = [], self.trouble
        for address in await self._of(node):
            if address.joins:
                await connect(self.engine, address.joins, address.container, JOINED)
            reason = "cancelled"
            try:
                reason = await _reason(self.engine, node, address)
                if not reason:
                    return address
            finally:
                # Also when this is cancelled, or the engine fails.
                if reason and address.joins:
                    await disconnect(self.engine, address.joins, address.container)
            tried.append(f"{address.url}: {reason}")
            advice = advice or address.advice
        if not tried:
            raise CannotAttach(
                "k3dreg has no plain-HTTP port",
                advice=f"give nodes its certificate: k3dreg config {node.kind.name} --mode host --ca FILE",
            )
        raise CannotAttach(f"it does not reach k3dreg ({'; '.join(tried)})", advice=advice)

    async def leave(self, attached: Sequence[ClusterNode]) -> Sequence[str]:
        """Take k3dreg's container out of networks that it joined and in which no node of `attached` is.

        With `searches`, take all of k3dreg's containers out of them.  Returns the networks' names.  Raises
        `EngineError`.
        """
        needed = {network for node in attached for network in node.networks}
        own = await containers.inspect(self.engine, self.hostname)
        left = []
        for listed in await containers.listed(self.engine):
            concerned = _may_be_k3dreg(listed) if self.searches else own is not None and listed.name == own.name
            for network in set(listed.networks) - needed if concerned else ():
                container = await containers.inspect(self.engine, listed.id)
                joined = container.networks if container is not None else ()
                if any(each.network == network and JOINED in each.aliases for each in joined):
                    await disconnect(self.engine, network, listed.id)
                    left.append(network)
        return left

    async def _of(self, node: ClusterNode) -> Sequence[Address]:
        """Return the addresses to try: in this container, beside the node, on the host, in other containers."""
        own = await containers.inspect(self.engine, self.hostname)
        if own is not None and (own.hostname != self.hostname or any(each.network == _HOST for each in own.networks)):
            own = None
        found = _of_container(own, node, self.ports) if own is not None else []
        if own is None or self.searches:
            host = await self._on_host(node)
            others = await self._in_other_containers(node, own) if self.searches else []
            beside = [address for address in others if not address.joins]
            found += [*beside, *host, *(address for address in others if address.joins)]
        return found

    async def _on_host(self, node: ClusterNode) -> Sequence[Address]:
        container = await containers.inspect(self.engine, node.id)
        joined = container.networks if container is not None else ()
        hosts = ["127.0.0.1" if each.network == _HOST else each.gateway for each in joined]
        return [
            Address(
                host,
                port,
                advice=f"if k3dreg runs on this machine, let it listen on {host} (--listen tcp:{port}), "
                "and open the port in the firewall",
            )
            for port in self.ports
            for host in dict.fromkeys([*filter(None, hosts), _DESKTOP])
        ]

    async def _in_other_containers(self, node: ClusterNode, own: Container | None) -> Sequence[Address]:
        found: list[Address] = []
        for listed in await containers.listed(self.engine):
            if listed.state == "running" and _may_be_k3dreg(listed) and (own is None or listed.name != own.name):
                container = await containers.inspect(self.engine, listed.id)
                if container is not None:
                    found += _of_container(container, node, _ports_of(container))
        return found


def _of_container(container: Container, node: ClusterNode, ports: Sequence[int]) -> list[Address]:
    named = [network for network in node.networks if network not in (_NAMELESS, _HOST)]
    if not named:
        return []
    joined = {each.network for each in container.networks}
    joins = "" if joined.intersection(named) else named[0]
    advice = f"docker logs {container.name}"
    return [Address(container.name, port, container.name, joins, advice) for port in ports]


def _may_be_k3dreg(listed: ListedContainer) -> bool:
    """Return whether a container may be k3dreg's.  This avoids requests to unrelated containers; the answer decides."""
    is_named = "k3dreg" in listed.image or "k3dreg" in listed.command or "k3dreg" in listed.name
    return is_named or listed.labels.get("k3d.role") == "registry"


def _ports_of(container: Container) -> Sequence[int]:
    told = [container.labels.get(_INTERNAL_PORT, ""), *(inside for inside, _ in container.tcp_ports)]
    return list(dict.fromkeys([int(port) for port in told if port.isascii() and port.isdecimal()])) or [_DEFAULT_PORT]


async def _reason(engine: IEngineRequests, node: ClusterNode, address: Address) -> str:
    """Return why the node does not get images from k3dreg at this address, "" if it does.  Raises `EngineError`."""
    done = await run(engine, node.id, "sh", "-c", _PROBE, "sh", address.host, str(address.port))
    said = one_line(done.output)
    if '"k3dreg"' not in said:
        return said[-200:] if done.status else "another program answers there"
    if _UNAUTHORIZED.search(said):
        return "k3dreg asks for a password: --anonymous-pull lets nodes pull without"
    return said[-200:] if done.status else ""
