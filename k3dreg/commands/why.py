"""`k3dreg why IMAGE`: shows step by step how a node's request for one image is answered.  Nothing is pulled."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from twisted.internet.interfaces import IReactorTime

from k3dreg.commands.dry_pull import Tell, WouldServe, make_dry_pull
from k3dreg.config.settings import Config
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.errors import K3dregError, StoreError
from k3dreg.oci.reference import DOCKER_HUB, Reference, Repository, split_host, split_name
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.tag_records import TAG_TABLES, TagRecords
from k3dreg.reporting.trace import Trace
from k3dreg.store.database import DATABASE_FILE, DatabaseConnection, open_in_memory, open_read_only
from k3dreg.store.pushed_queries import PushedReader
from k3dreg.store.pushed_tables import PUSHED_TABLES
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.origin import ICredentialSource, ITagDigests
from k3dreg.web.error_answers import status_and_code


def parse_image(text: str) -> Reference:
    """Return the reference that a node reads an image in a pod as: `nginx` is `docker.io/library/nginx:latest`.

    Raises `InvalidName`, `InvalidReference` or `InvalidDigest`.
    """
    name, tag, digest = split_name(text)
    host, path = split_host(name)
    target = "latest" if tag is None else tag
    return Reference.parse(Repository.parse(path, host or DOCKER_HUB), target if digest is None else digest)


async def explain(
    reference: Reference,
    config: Config,
    engine: IEngine,
    names: OwnNames,
    credentials: ICredentialSource,
    digests: ITagDigests,
    permitted: PermittedRegistries,
    workers: Workers,
    clock: IReactorTime,
    tell: Tell,
) -> bool:
    """Tell step by step how a daemon with these settings answers a node, and return whether the node gets the image.

    The steps are those of the daemon's own `Pull`, which runs without changing anything: see `make_dry_pull`.
    """
    told: list[str] = []

    def once(text: str) -> None:
        if not any(text in line for line in told):
            told.append(text)
            tell(text)

    registry = reference.repository.registry or ""
    # A node that asks the image's own registry sends no `ns`.
    own = names.own(reference.repository)
    ns = "" if own.registry is None else f"?ns={quote(registry, safe='')}"
    once(f"a node asks: HEAD /v2/{own.path}/manifests/{reference.target}{ns}")
    if own.registry is None:
        once(f"{registry} is this registry: what was pushed here comes first")
    database = await workers.acquire(_open_database, DatabaseConnection.close, config.state_dir)
    pushed = PushedReader(database)
    tags = TagRecords(database, workers)
    pull = make_dry_pull(config, engine, names, credentials, pushed, tags, digests, permitted, workers, clock, once)
    try:
        served = await pull.manifest(Reference(own, reference.target), None, Trace())
    except WouldServe as would:
        once(str(would))
        return True
    except K3dregError as error:
        once(error.explained)
        elsewhere = "" if own.registry is None else f", and the node asks {registry} itself"
        once(f"the answer is {status_and_code(error)[0]}{elsewhere}")
        return False
    finally:
        workers.clean_up(database.close)
    once(f"it was pushed here: a node gets {served.descriptor.digest}")
    return True


def _open_database(state_dir: Path) -> DatabaseConnection:
    """Open the database in the state directory for reading; an empty one if it cannot be read."""
    tables = (PUSHED_TABLES, TAG_TABLES)
    try:
        return open_read_only(state_dir / DATABASE_FILE, tables)
    except StoreError:
        return open_in_memory(tables)
