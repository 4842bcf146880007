"""The rule of a k3dreg that serves the images of one remote registry only (`--proxy-remote-url`)."""

from __future__ import annotations

from collections.abc import Callable

from k3dreg.oci.reference import Repository
from k3dreg.registry.own_names import OwnNames

ADVICE = 'REGISTRY_PROXY_REMOTEURL="*" lets k3dreg serve the images of every registry'


def _nothing(repository: Repository) -> bool:
    return False


class OneRemote:
    """Tells which repositories are served when `--proxy-remote-url` names a registry."""

    def __init__(self, remote: str | None, names: OwnNames, is_pushed: Callable[[Repository], bool] = _nothing) -> None:
        """`remote` is the host, "docker.io" for Docker Hub; None: every registry's images are served.

        `is_pushed` tells whether anything was pushed to a repository.
        """
        self._remote = remote
        self._names = names
        self._is_pushed = is_pushed

    def refusal(self, repository: Repository) -> str | None:
        """Return why nothing of the repository is served; None if it is this registry's own or the remote's.

        A registry in the path counts as one in `ns=`.
        """
        meant = self._names.own(repository).in_path or repository
        if self._remote is None or self._names.is_own(meant.registry) or str(meant.registry).lower() == self._remote:
            return None
        return f"k3dreg serves images of {self._remote} only, and {meant} is another registry's"

    def remotes(self, repository: Repository) -> Repository | None:
        """Return the remote's repository that a client may mean when it names no registry.

        Clients of the official registry image's pull-through cache send such requests.  None means that only this
        registry's own repository can be meant.
        """
        if self._remote is None or repository.registry is not None or repository.in_path is not None:
            return None
        return None if self._is_pushed(repository) else Repository.parse(repository.path, self._remote)
