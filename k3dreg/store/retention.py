"""Find the pushed tags that the rules of `--retain` do not keep.  It reads lists: call it in a worker thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from k3dreg.config.retention import RetainRule
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository
from k3dreg.store.interfaces import ExpiredTag
from k3dreg.store.pushed_queries import IRows, only_known_values, repository_of
from k3dreg.store.pushed_tables import PULL_RECORDED_EVERY, key_of

# Seconds after a pull for which no rule removes a tag: a day, and the time by which the recorded pull may be late.
PULL_PROTECTS = 86400.0 + PULL_RECORDED_EVERY

_REPOSITORIES = "SELECT DISTINCT registry, path FROM tag"
_NEWEST_FIRST = """
    SELECT name, digest, pushed, pulled FROM tag WHERE registry=? AND path=? ORDER BY pushed DESC, name DESC"""
_ON_NODES = "SELECT digest FROM node_pull WHERE registry=? AND path=?"
# A manifest, and the manifests that are its parts.
_MANIFESTS = """
    WITH RECURSIVE content (digest) AS (
        SELECT ?3
        UNION
        SELECT value FROM content CROSS JOIN manifest, json_each(parts)
        WHERE manifest.registry=?1 AND manifest.path=?2 AND manifest.digest=content.digest)
    SELECT digest FROM content CROSS JOIN manifest USING (digest) WHERE registry=?1 AND path=?2"""


def expired_tags(database: IRows, rules: Sequence[RetainRule], now: float) -> list[ExpiredTag]:
    """Return the tags that the rules do not keep, those of a repository together: see `IPushed.retire`.

    `now` is in seconds since the epoch.
    """
    expired: list[ExpiredTag] = []
    with only_known_values():
        for registry, path in database.rows(_REPOSITORIES):
            repository = repository_of(registry, path)
            expired += _expired_in(database, repository, rules, now)
    return expired


def _expired_in(database: IRows, repository: Repository, rules: Sequence[RetainRule], now: float) -> list[ExpiredTag]:
    key = key_of(repository)
    on_nodes = {digest for (digest,) in database.rows(_ON_NODES, key)}
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
        if on_nodes.isdisjoint(manifests):
            expired.append(ExpiredTag(repository, name, rule, frozenset(map(Digest.parse, manifests))))
    return expired
