"""`k3dreg why IMAGE`: shows step by step how a node's request for one image is answered.  Nothing is pulled."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from attrs import frozen

from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, ImageNotInEngine, K3dregError, RegistryNotAllowed
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.one_remote import OneRemote
from k3dreg.registry.other_platform import differs
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.resolver import digest_advice
from k3dreg.store.pushed_database import PushedDatabase, PushedRow
from k3dreg.upstream.origin import ICredentialSource
from k3dreg.upstream.permission import MayAsk, every_registry
from k3dreg.web.error_answers import status_and_code


@frozen
class Step:
    """One step, as text for the user.  In the last step `answer` is whether a node would get the image from k3dreg."""

    says: str
    answer: bool | None = None


def parse_image(text: str) -> Reference:
    """Return the reference that a node reads an image in a pod as: `nginx` is `docker.io/library/nginx:latest`.

    Raises `InvalidName`, `InvalidReference` or `InvalidDigest`.
    """
    name, at, digest = text.partition("@")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a port
        path, tag = name, "latest"
    first, slash, rest = path.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        repository = Repository.parse(rest, first)
    else:
        repository = Repository.parse(path, "docker.io")
    return Reference.parse(repository, digest if at else tag)


async def walk(
    reference: Reference,
    engine: IEngine,
    names: OwnNames,
    credentials: ICredentialSource,
    *,
    pushed: Callable[[Reference], Digest | None],
    origin_fallback: bool = False,
    only: str | None = None,
    may_ask: MayAsk = every_registry,
) -> AsyncIterator[Step]:
    """Yield the steps as they are taken.  The engine may ask the image's registry, but pulls nothing.

    `pushed` returns the digest that was pushed under a reference, or None.  `origin_fallback` is the daemon's option.
    `only` is the one registry whose images k3dreg serves, None for all registries.  `may_ask` is called before a
    registry is asked, and raises if it may not be.
    """
    repository = reference.repository
    ns = quote(repository.registry or "", safe="")
    yield Step(f"a node asks: HEAD /v2/{repository.path}/manifests/{reference.target}?ns={ns}")
    own = names.is_own(repository.registry)
    if own:
        yield Step(f"{repository.registry} is this registry: what was pushed here comes first")
    found = pushed(Reference(names.own(repository), reference.target))
    if found is not None:
        yield Step(f"it was pushed here: a node gets {found}", True)
        return
    if (refusal := OneRemote(only, names).refusal(repository)) is not None:
        yield Step(f"404: {refusal} (REGISTRY_PROXY_REMOTEURL)", False)
        return
    if own:
        yield Step("it was not pushed here")
    try:
        info = await engine.info()
        yield Step(f"the engine is {info.version}, {info.store.value} image store")
        image: EngineImage | None = None
        for name in names.in_engine(reference, info.store):
            try:
                image = await engine.inspect(str(name))
            except ImageNotInEngine:
                yield Step(f"the engine has no {name}")
            else:
                yield Step(f"the engine has {name}: image {image.id}, {image.size / 1e6:.1f} MB")
                if differs(image, info):
                    yield Step(
                        f"it is for {image.platform}, and the engine runs on {info.platform}: if its registry has it "
                        f"for {info.platform}, a node is sent there (404)"
                    )
                break
    except EngineError as error:
        said = f"{error}. {error.advice}".rstrip(". ")
        yield Step(f"the engine cannot be asked: {said}; the answer is {status_and_code(error)[0]}", False)
        return
    ask = _Asking(engine, credentials, reference, may_ask)
    if image is not None and (reference.digest is None or image.id == reference.digest):
        async for step in _held(image, ask):
            yield step
    elif own:
        yield Step("404: Docker pulls nothing under this registry's own names", False)
    elif reference.digest is not None and info.store is not ImageStore.CONTAINERD:
        if origin_fallback:
            yield Step("Docker cannot give an image by digest, so k3dreg asks the image's registry (--origin-fallback)")
            async for step in ask.steps(f"k3dreg fetches it from {repository.registry}"):
                yield step
        else:
            yield Step(f"404, and the node asks {repository.registry}: {digest_advice(info.store)}", False)
    else:
        async for step in ask.steps("Docker pulls it, and then the node gets it"):
            yield step


async def _held(image: EngineImage, ask: _Asking) -> AsyncIterator[Step]:
    """Yield the steps for an image that the engine has."""
    platforms = [child for child in image.children if child.kind == "image"]
    for child in platforms:
        here = "here" if child.available else "not here"
        yield Step(f"{child.descriptor.platform or 'a manifest'} of it is {here}")
    if any(child.held and not child.available for child in platforms):
        yield Step(
            "Docker has lost blobs of it (moby#49473): k3dreg fetches them from its registry. Should that fail: remove "
            "the image, and those that share its layers, and pull it again"
        )
        async for step in ask.steps("k3dreg repairs it, and then the node gets it"):
            yield step
    elif image.store is ImageStore.CONTAINERD:
        yield Step(f"a node gets it by Docker's own digest, {image.id}", True)
    else:
        yield Step("a node gets it, with a manifest that k3dreg makes: the engine keeps none", True)


@frozen
class _Asking:
    """Asks the image's registry, through the engine, for the descriptor of a reference."""

    _engine: IEngine
    _credentials: ICredentialSource
    _reference: Reference
    _may_ask: MayAsk

    async def steps(self, then: str) -> AsyncIterator[Step]:
        """Ask the registry and yield the steps; `then` is the text of the last one if the registry has the image."""
        registry = self._reference.repository.registry or ""
        try:
            await self._may_ask(registry)
        except RegistryNotAllowed as error:
            yield Step(f"{error}: {error.advice}")
            yield Step(f"the answer is {status_and_code(error)[0]}, and the node asks {registry} itself", False)
            return
        auth = await self._credentials.registry_auth(registry)
        yield Step(
            f"k3dreg has credentials for {registry}: DOCKER_AUTH_CONFIG's, config.json's, a helper's, or ECR's"
            if auth
            else f"k3dreg has no credentials for {registry}: a node's (imagePullSecrets) would be used"
        )
        try:
            if (await self._engine.info()).store is ImageStore.PODMAN:
                yield Step(f"k3dreg cannot ask {registry} without a pull: Podman has no request for it. {then}", True)
                return
            descriptor = await self._engine.distribution(str(self._reference), auth)
        except K3dregError as error:
            said = f"{error}. {error.advice}" if error.advice else str(error)
            yield Step(f"{registry} does not give it: {said}")
            yield Step(f"the answer is {status_and_code(error)[0]}, and the node asks {registry} itself", False)
        else:
            yield Step(f"{registry} has it: {descriptor.digest}")
            yield Step(then, True)


def pushed_in(file: Path) -> Callable[[Reference], Digest | None]:
    """Return a function for the digest that was pushed under a reference, from the state directory's list at `file`.

    It finds nothing if the list cannot be read.  Blocks.
    """
    rows: Sequence[PushedRow] = ()
    with contextlib.suppress(K3dregError):
        if file.exists():
            book = PushedDatabase(file, read_only=True)
            try:
                rows = book.read()
            finally:
                book.close()
    tags = {(row.repository, row.tag[0]): row.tag[1] for row in rows if row.tag is not None}
    manifests = {(row.repository, row.manifest.digest) for row in rows if row.manifest is not None}

    def find(reference: Reference) -> Digest | None:
        if reference.digest is not None:
            return reference.digest if (reference.repository, reference.digest) in manifests else None
        return tags.get((reference.repository, str(reference.target)))

    return find
