"""`k3dreg why IMAGE`: one reference, walked through resolving as a node would ask for it.  Nothing is pulled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

from attrs import frozen

from k3dreg.interfaces import IEngine
from k3dreg.model.engine import EngineImage, ImageStore
from k3dreg.model.errors import EngineError, ImageNotInEngine
from k3dreg.model.reference import Reference, Repository
from k3dreg.names import OwnNames
from k3dreg.resolving import digest_advice


@frozen
class Step:
    """One step, for a person.  `answer` is set by the last: whether a node would get the image from here."""

    says: str
    answer: bool | None = None


def parse_image(text: str) -> Reference:
    """The reference that a node makes of an image in a pod: `nginx` is `docker.io/library/nginx:latest`.

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


async def walk(reference: Reference, engine: IEngine, names: OwnNames, only: str | None = None) -> AsyncIterator[Step]:
    """The steps, as they are taken.  `only` is the one registry whose images are given, None for all of them."""
    repository = reference.repository
    ns = quote(repository.registry or "", safe="")
    yield Step(f"a node asks: HEAD /v2/{repository.path}/manifests/{reference.target}?ns={ns}")
    own = names.is_own(repository.registry)
    if own:
        yield Step(f"{repository.registry} is this registry: what was pushed here under the name comes first")
    elif only not in (None, repository.registry):
        yield Step(f"404: k3dreg was told to give images of {only} alone (REGISTRY_PROXY_REMOTEURL)", False)
        return
    try:
        info = await engine.info()
        yield Step(f"the engine is {info.version}, {info.store.value} image store")
        image: EngineImage | None = None
        for name in names.in_engine(reference, info.store):
            try:
                image = await engine.inspect(str(name))
            except ImageNotInEngine:
                yield Step(f"it has no {name}")
            else:
                yield Step(f"it has {name}: image {image.id}, {image.size / 1e6:.1f} MB")
                break
    except EngineError as error:
        yield Step(f"the engine cannot be asked: {error}. {error.advice}".rstrip(". ") + "; the answer is 503", False)
        return
    if image is not None:
        for step in held(image, reference):
            yield step
    elif own:
        yield Step("nothing is pulled under this registry's own names: 404, unless it was pushed", False)
    elif reference.digest is not None and info.store is not ImageStore.CONTAINERD:
        yield Step(f"404: {digest_advice(info.store)}", False)
    else:
        yield Step(
            f"Docker would be asked to pull {reference}; if it cannot, the node asks {repository.registry}", True
        )


def held(image: EngineImage, reference: Reference) -> list[Step]:
    """What comes of an image that the engine has."""
    if reference.digest is not None and image.id != reference.digest:
        return [Step(f"404: {digest_advice(image.store)}", False)]
    steps = [
        Step(f"{child.descriptor.platform or 'a manifest'} of it is {'here' if child.available else 'not here'}")
        for child in image.children
        if child.kind == "image"
    ]
    broken = [child for child in image.children if child.kind == "image" and child.held and not child.available]
    if broken:
        steps.append(Step("Docker has lost blobs of it (moby#49473): remove the image and pull it again", False))
    elif image.store is ImageStore.CONTAINERD:
        steps.append(Step(f"a node gets it by Docker's own digest, {image.id}", True))
    else:
        steps.append(Step("a node gets it, with a manifest that k3dreg makes: the engine keeps none", True))
    return steps
