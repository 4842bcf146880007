"""`k3dreg refresh IMAGE…`: asks registries now whether tags have moved, and lets Docker pull those that have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from k3dreg.commands.engine_image import image_of
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.errors import K3dregError, StoreError
from k3dreg.oci.reference import Reference
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions, not_known
from k3dreg.registry.tag_records import TAG_TABLES
from k3dreg.reporting.trace import Trace
from k3dreg.store.database import DATABASE_FILE, DatabaseConnection, open_beside, open_in_memory


async def refresh(
    questions: TagQuestions,
    resolver: Resolver,
    credentials: PullCredentials,
    engine: IEngine,
    names: OwnNames,
    references: Sequence[Reference],
    say: Callable[[str], object],
) -> int:
    """Refresh each image, say what happened, and return the exit status: 0 if Docker has now what the registries have.

    Names of k3dreg's own, and images that are not known to be their registry's, make it 1.
    """
    status = 0
    for reference in references:
        try:
            said, is_current = await _refresh(questions, resolver, credentials, engine, names, reference)
        except K3dregError as error:
            said, is_current = error.explained, False
        say(f"{reference}: {said}")
        status = status or int(not is_current)
    return status


async def _refresh(
    questions: TagQuestions,
    resolver: Resolver,
    credentials: PullCredentials,
    engine: IEngine,
    names: OwnNames,
    reference: Reference,
) -> tuple[str, bool]:
    """Return what happened, and whether Docker has what the registry has.  Raises `K3dregError`."""
    refusal = questions.refuses(reference)
    if refusal is not None:
        return f"not asked for: {refusal}", reference.digest is not None
    image = await image_of(engine, names, reference)
    record = await questions.ask(image, reference, None)
    if not record.is_of(image):
        return f"not replaced: {not_known(reference)}. `docker pull {reference}` replaces it", False
    if not record.is_newer_than(image, reference):
        return f"Docker has what {reference.repository.registry} has, {record.digest}", True
    auth = await credentials.registry_auth(reference, None)
    newer = await resolver.pull_newer(image, reference, auth, Trace())
    return f"moved: Docker pulled {record.digest}, image {newer.id} in place of {image.id}", True


def open_records(state_dir: Path, say: Callable[[str], object]) -> DatabaseConnection:
    """Open the database in which a daemon that may be running records tags; an empty one if there is none.

    `say` is called if it cannot be used.  The caller closes it.  It blocks.
    """
    file, tables = state_dir / DATABASE_FILE, (TAG_TABLES,)
    try:
        if file.exists():
            return open_beside(file, tables)
    except (OSError, StoreError) as error:
        say(f"what k3dreg had Docker pull is not known: {error}; run this command as the daemon's user")
    return open_in_memory(tables)
