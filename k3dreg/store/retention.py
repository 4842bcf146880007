"""Find the pushed tags that the rules of `--retain` do not keep.  It reads lists: call it in a worker thread."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby

from k3dreg.config.retention import RetainRule
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository
from k3dreg.store.interfaces import ExpiredTag, PushedUsage
from k3dreg.store.pushed_queries import IRows, only_known_values, only_reached_by, repository_of
from k3dreg.store.pushed_tables import PULL_RECORDED_EVERY, key_of

# Seconds after a pull for which no rule removes a tag: a day, and the time by which the recorded pull may be late.
PULL_PROTECTS = 86400.0 + PULL_RECORDED_EVERY

_REPOSITORIES = "SELECT DISTINCT registry, path FROM tag"
_NEWEST_FIRST = """
    SELECT name, digest, pushed, pulled FROM tag WHERE registry=? AND path=? ORDER BY pushed DESC, name DESC"""
_ON_NODES = "SELECT DISTINCT digest FROM node_image"
# A manifest, and the manifests that are its parts.
_MANIFESTS = """
    WITH RECURSIVE content (digest) AS (
        SELECT ?3
        UNION
        SELECT value FROM content CROSS JOIN manifest, json_each(parts)
        WHERE manifest.registry=?1 AND manifest.path=?2 AND manifest.digest=content.digest)
    SELECT digest FROM content CROSS JOIN manifest USING (digest) WHERE registry=?1 AND path=?2"""

_BYTES = """
    SELECT total(size) FROM (SELECT max(size) AS size FROM
        (SELECT digest, size FROM blob UNION ALL SELECT digest, size FROM manifest) GROUP BY digest)"""
# The bytes of some manifests (?1, a JSON list of their keys) and their parts, to which no other manifest leads.
_FREED = """
    WITH gone (registry, path, digest) AS (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(?1)),
    staying (digest, parts) AS (
        SELECT digest, parts FROM manifest
        WHERE (registry, path, digest) NOT IN (SELECT registry, path, digest FROM gone)),
    going (digest) AS (
        SELECT digest FROM gone
        UNION SELECT part.value FROM gone CROSS JOIN manifest USING (registry, path, digest), json_each(parts) AS part
        EXCEPT SELECT digest FROM staying
        EXCEPT SELECT part.value FROM staying, json_each(parts) AS part)
    SELECT total(size) FROM (SELECT max(size) AS size FROM going CROSS JOIN
        (SELECT digest, size FROM blob UNION ALL SELECT digest, size FROM manifest) USING (digest) GROUP BY digest)"""


def pushed_usage(database: IRows, rules: Sequence[RetainRule], now: float) -> PushedUsage:
    """Return how much disk space pushed content takes, and that of the tags that the rules do not keep."""
    [(used,)] = database.rows(_BYTES)
    expired = expired_tags(database, rules, now) if rules else []
    gone = [
        (*key_of(repository), str(digest))
        for repository, tags in groupby(expired, key=lambda tag: tag.repository)
        for digest in only_reached_by(database, repository, [tag.name for tag in tags])
    ]
    [(freed,)] = database.rows(_FREED, (json.dumps(gone),)) if gone else [(0,)]
    return PushedUsage(int(used), len(expired), int(freed))


def expired_tags(database: IRows, rules: Sequence[RetainRule], now: float) -> list[ExpiredTag]:
    """Return the tags that the rules do not keep, those of a repository together: see `IPushed.retire`.

    `now` is in seconds since the epoch.
    """
    expired: list[ExpiredTag] = []
    on_nodes = {digest for (digest,) in database.rows(_ON_NODES)}
    with only_known_values():
        for registry, path in database.rows(_REPOSITORIES):
            repository = repository_of(registry, path)
            expired += _expired_in(database, repository, rules, now, on_nodes)
    return expired


def _expired_in(
    database: IRows, repository: Repository, rules: Sequence[RetainRule], now: float, on_nodes: Collection[str]
) -> list[ExpiredTag]:
    key = key_of(repository)
    expired = []
    newer: Counter[RetainRule] = Counter()
    for name, digest, pushed, pulled in database.rows(_NEWEST_FIRST, key):
        rule = next((rule for rule in rules if rule.fits(repository.path, name)), None)
        if rule is None:
            continue
        newer[rule] += 1
        too_old = now - max(pushed, pulled) > rule.seconds if rule.seconds else newer[rule] > rule.newest
        if not too_old or now - pulled < PULL_PROTECTS:
            continue
        manifests = [found for (found,) in database.rows(_MANIFESTS, (*key, digest))]
        if not any(manifest in on_nodes for manifest in manifests):
            expired.append(ExpiredTag(repository, name, rule, frozenset(map(Digest.parse, manifests))))
    return expired
