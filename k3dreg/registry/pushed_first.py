"""The use case of a pull in front of the engine's: what was pushed under a name comes first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ContentGone, EngineUnavailable, ManifestUnknown, NotFound
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.use_cases import IRegistry
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IBlobStore, IPushed, PushedManifest
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob

T = TypeVar("T")

# Why an engine gets nothing of its own: it goes on to the next registry then.
_CIRCULAR = "itself has asked Docker for it, whose registry mirror this is"
# For people who look by hand.
_HEAD_ADVICE = "what Docker holds under this name is shown to GET, and to the HEAD of a node (docs/pushing.md)"


class PushedFirst:
    """Content that was pushed, and behind it another registry: the one whose content is the engine's."""

    def __init__(
        self,
        behind: IRegistry,
        pushed: IPushed,
        store: IBlobStore,
        names: OwnNames,
        is_engines: Callable[[Digest], bool],
    ) -> None:
        """`is_engines` says whether content is known to be part of an image in the engine."""
        self._behind = behind
        self._pushed = pushed
        self._store = store
        self._names = names
        self._is_engines = is_engines

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """Return what was pushed under the reference, else what is behind; see `IRegistry`.

        Under this registry's own names a request that may decide a push is answered by what was pushed alone.
        """
        repository = self._names.own(reference.repository)
        if isinstance(reference.target, Tag):
            pushed = self._pushed.tagged(repository, reference.target)
        else:
            pushed = self._pushed.manifest(repository, reference.target)
        if pushed is not None and not self._store.has(pushed.digest):
            pushed = None  # its file is gone: a client that is told so pushes it again
        if pushed is None and reference.digest is not None and self._is_only_pushed(reference.digest):
            raise ManifestUnknown(f"{reference} was not pushed, and Docker is not known to have it")
        if pushed is None:
            return await self._from_behind(reference, authorization, trace)
        trace.source = "pushed"
        found = pushed
        return ServedManifest(found.descriptor, lambda: self._open(found))

    async def _from_behind(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        if trace.circular:
            raise ManifestUnknown(f"{reference} was not pushed here, and k3dreg {_CIRCULAR}")
        if trace.may_decide_a_push and self._names.is_own(reference.repository.registry):
            # A push tool that is told of Docker's copy sends nothing, and `docker rmi` then removes what it pushed.
            raise ManifestUnknown(f"{reference} was not pushed here", advice=_HEAD_ADVICE)
        try:
            return await self._held_or_named(
                reference.repository,
                lambda repository: self._behind.manifest(Reference(repository, reference.target), authorization, trace),
            )
        except EngineUnavailable as error:
            if not self._names.is_own(reference.repository.registry):
                raise
            # Pushes go on without an engine, and the first thing a client does is to ask whether the tag is taken:
            # anything but 200 and 404 ends its push.
            raise ManifestUnknown(f"{reference} was not pushed here, and {error}", advice=error.advice) from error

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """See `IRegistry`.

        What was pushed is served from the repositories it was pushed to, so that what is deleted from one of them is
        gone from there (distribution-spec 1.1, "Deleting Blobs").  What is Docker's is served under any name.
        """
        if self._pushed.has_blob(self._names.own(repository), digest):
            blob = self._store.get(digest)
            if blob is not None:
                trace.source = "pushed"
                return blob
        if self._is_only_pushed(digest):
            raise BlobUnknown(f"{digest} was not pushed to {repository}, and Docker is not known to have it")
        if trace.circular:
            raise BlobUnknown(f"{digest} was not pushed to {repository}, and k3dreg {_CIRCULAR}")
        return await self._held_or_named(repository, lambda repository: self._behind.blob(repository, digest, trace))

    async def _held_or_named(self, repository: Repository, ask: Callable[[Repository], Awaitable[T]]) -> T:
        """Ask what is behind; where the path itself names a registry, for this registry's own name first.

        So `GET /v2/ghcr.io/team/app/…` gives what Docker holds as `localhost:5005/ghcr.io/team/app`, and else
        what `?ns=ghcr.io` would.
        """
        named = self._names.own(repository).in_path
        if named is not None:
            try:
                return await ask(repository)
            except NotFound:
                repository = named
        return await ask(repository)

    def _is_only_pushed(self, digest: Digest) -> bool:
        """Whether it is here because it was pushed, elsewhere or once, and not because Docker has it."""
        return self._pushed.was_pushed(digest) and not self._is_engines(digest)

    async def _open(self, pushed: PushedManifest) -> IBlob:
        blob = self._store.get(pushed.digest)
        if blob is None:
            raise ContentGone(f"{pushed.digest} was pushed, and is not on the disk any more")
        return MemoryBlob(pushed.digest, await blob.read(), pushed.descriptor.media_type)
