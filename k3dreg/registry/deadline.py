"""Answers in time: a node gets the head of an answer before it stops waiting, whatever the work behind it takes."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.use_cases import IRegistry
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.timeout import within

T = TypeVar("T")

# Seconds after which to ask again: the kubelet's first back-off is as long.
_AGAIN = 10.0


class WithDeadline:
    """A registry whose every answer begins before its client stops waiting (`Trace.patience`).

    What takes longer goes on behind the answer "not yet", and whoever asks again is served from its result.
    """

    def __init__(self, registry: IRegistry, clock: IReactorTime) -> None:
        self._registry = registry
        self._clock = clock

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """As the registry's, or `NotYet`."""
        until = self._clock.seconds() + trace.patience
        served = await self._within(until, self._registry.manifest(reference, authorization, trace))

        async def opened() -> IBlob:
            return await served.open()

        return evolve(served, open=lambda: self._within(until, opened()))

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """As the registry's, or `NotYet`."""
        until = self._clock.seconds() + trace.patience
        return await self._within(until, self._registry.blob(repository, digest, trace))

    async def _within(self, until: float, work: Coroutine[Deferred[Any], Any, T]) -> T:
        return await within(max(0.0, until - self._clock.seconds()), self._clock, work, after=_AGAIN)
