"""Decides which registries may be asked for images (`--allow-registry`)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

from k3dreg.docker.interfaces import IEngine, IImageNames
from k3dreg.oci.errors import EngineError, RegistryNotAllowed
from k3dreg.oci.reference import DOCKER_HUB
from k3dreg.reporting.logger import make_logger
from k3dreg.upstream.addresses import address_of, hostname_of, is_local, is_local_host

log = make_logger()

# The pattern for every registry but those on this machine and its link.
EVERY = "*"
_WILDCARDS = frozenset("*?")

Resolve = Callable[[str], Awaitable[Sequence[str]]]


async def _no_addresses(name: str) -> Sequence[str]:
    return ()


class PermittedRegistries:
    """Decides whether Docker, or k3dreg itself, may be sent to a registry that a client names.

    A client may name any host, and could learn from the answer whether something listens there.  So an address that
    only this machine reaches (loopback, link-local) is asked only if the user is known to use it as a registry:
    `--allow-registry` lists it by name, Docker's insecure registries list its host and port, or Docker holds an image
    of it.
    """

    def __init__(
        self,
        patterns: Iterable[str],
        engine: IEngine,
        images: IImageNames,
        resolve: Resolve = _no_addresses,
        *,
        remote: str | None = None,
    ) -> None:
        """`patterns` are `--allow-registry`'s; none means every registry.

        `resolve` returns the addresses of a name, none if it cannot be resolved.  `remote` is the host of
        `--proxy-remote-url`, which may always be asked.
        """
        self._engine = engine
        self._images = images
        self._resolve = resolve
        self._remote = remote
        self._patterns: tuple[str, ...] = ()
        self.change(patterns)

    def change(self, patterns: Iterable[str]) -> None:
        """Use these patterns from the next request on."""
        self._patterns = tuple(pattern.lower() for pattern in patterns) or (EVERY,)

    async def check(self, registry: str) -> None:
        """Raise `RegistryNotAllowed` unless `registry`, a host with an optional port, may be asked.

        The error's text does not depend on what is at that address.  The reason is logged only.
        """
        registry = registry.lower()
        if registry == self._remote or self._is_named(registry):
            return
        if not any(_matches(registry, pattern) for pattern in self._patterns):
            raise self._refusal(registry, "--allow-registry does not list it")
        where = await self._local_address(registry)
        if where is None or await self._is_in_use(registry):
            return
        raise self._refusal(registry, f"{where}, --allow-registry does not list it, and Docker has no image of it")

    async def is_known(self, registry: str) -> bool:
        """Return whether the user is known to use this registry, so that clients may be told what fails there."""
        registry = registry.lower()
        return registry in (self._remote, DOCKER_HUB) or self._is_named(registry) or await self._is_in_use(registry)

    def _is_named(self, registry: str) -> bool:
        """Return whether a pattern names the registry's host in full."""
        return any(
            _matches(registry, pattern)
            for pattern in self._patterns
            if not _WILDCARDS.intersection(_without_port(pattern))
        )

    async def _is_in_use(self, registry: str) -> bool:
        try:
            if registry in (await self._engine.info()).insecure_registries:
                return True
            return any((name.registry or "").lower() == registry for name, _ in await self._images.names())
        except EngineError:
            return False

    async def _local_address(self, registry: str) -> str | None:
        """Return how a registry is known to be on this machine or its link; None for any other."""
        if is_local_host(registry):
            return "it leads to this machine or its link"
        if address_of(registry) is not None:
            return None
        for text in await self._resolve(hostname_of(registry)):
            address = address_of(text)
            if address is not None and is_local(address):
                return f"its name resolves to {address}"
        return None

    def _refusal(self, registry: str, why: str) -> RegistryNotAllowed:
        log.warn("k3dreg does not ask {registry} for an image: {why}", registry=registry, why=why)
        listed = f"'{EVERY}' --allow-registry {registry}" if self._patterns == (EVERY,) else registry
        variable = " ".join((*self._patterns, registry))
        return RegistryNotAllowed(
            f"k3dreg may not ask {registry} for images",
            advice=f'if it is a registry of yours: --allow-registry {listed} (or K3DREG_ALLOW_REGISTRY="{variable}")',
        )


def _matches(registry: str, pattern: str) -> bool:
    """Return whether a registry's host matches a pattern of `*` and `?`.  Brackets are those of an IPv6 address."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, registry) is not None


def _without_port(pattern: str) -> str:
    """Return the host of a pattern without its port, which may be a wildcard."""
    host, colon, port = pattern.rpartition(":")
    return host if colon and not port.endswith("]") else pattern
