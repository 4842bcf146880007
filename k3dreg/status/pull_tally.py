"""Counts how much content, and how many images, k3dreg served without a download."""

from __future__ import annotations

from cachetools import LRUCache

from k3dreg.oci.reference import split_name
from k3dreg.reporting.activity import Activity, RequestReport
from k3dreg.status.overview import Saved

# Repositories that are remembered: far more than are pulled at about the same time.
_MOST = 1000


class Tally:
    """Counts the images that clients pull, and the bytes that they get.

    A pull by Docker is subtracted: the first client that gets an image of the repository afterwards does not count.
    """

    def __init__(self, most: int = _MOST) -> None:
        """`most` is how many repositories are remembered."""
        self._bytes = 0
        self._pulls = 0
        self._fetched = 0
        # By repository, the number of Docker's pulls whose image no client has got yet.
        self._pulled: LRUCache[str, int] = LRUCache(most)

    def saved(self) -> Saved:
        """Return the sums since the start."""
        return Saved(self._bytes, self._pulls, self._fetched)

    def began(self, activity: Activity) -> None:
        """Note that Docker begins a pull.  Not at its end, as nodes may get the image before."""
        if activity.kind == "pull":
            repository = _repository_of(activity.subject)
            self._pulled[repository] = self._pulled.get(repository, 0) + 1

    def ended(self, activity: Activity, refusal: str) -> None:
        """Count the bytes of a pull of Docker that has ended.  `refusal` is "" if it succeeded."""
        if activity.kind != "pull":
            return
        self._fetched += max(0, activity.progress().done)
        if refusal:
            self._take_pull(_repository_of(activity.subject))

    def answered(self, report: RequestReport) -> None:
        """Count the bytes of a request that has ended."""
        if report.method != "GET" or report.status not in (200, 206):
            return
        if report.source == "registry":
            self._fetched += report.sent
        else:
            self._bytes += report.sent

    def given(self, repository: str) -> None:
        """Count an image of the repository that a client gets, unless Docker has pulled one for it."""
        if not self._take_pull(repository):
            self._pulls += 1

    def _take_pull(self, repository: str) -> bool:
        """Subtract a pull of Docker of the repository.  Return False when there is none."""
        left = self._pulled.pop(repository, 0)
        if left > 1:
            self._pulled[repository] = left - 1
        return bool(left)


def _repository_of(subject: str) -> str:
    """Return the repository of `registry.example:5000/app:1` or of `app@sha256:…`."""
    return split_name(subject)[0]
