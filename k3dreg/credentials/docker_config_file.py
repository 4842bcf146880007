"""Look up the credentials of `docker login`: in Docker's `config.json`, and from the helpers that it names."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from k3dreg.credentials.docker_config import BadConfig, DockerConfig, helper_key
from k3dreg.credentials.helpers import HelperFailed, HelperRunner
from k3dreg.formats.basic_auth import Credentials
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.workers import Workers

log = make_logger()

# Bytes.  A real `config.json` has a few KiB; a larger file is something else.
_LARGEST_CONFIG = 1024 * 1024


@frozen
class _Read:
    """The file's content, and its state when it was read: modification time in ns, inode, size; None without a file."""

    state: tuple[int, int, int] | None
    config: DockerConfig
    complaint: str = ""


_NOTHING = _Read(None, DockerConfig())


def config_path(environment: Mapping[str, str]) -> Path:
    """Return the path of the file of Docker's command line: in `DOCKER_CONFIG`, else in `~/.docker`."""
    directory = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME", "/"), ".docker")
    return Path(directory) / "config.json"


class ConfigFile:
    """Credentials from a `config.json` and its helpers.

    Each lookup checks whether the file has changed, so that `docker login` and `logout` have effect at once.  A file
    that cannot be used is logged once, and again when there is another reason.
    """

    name = "config.json"

    def __init__(self, path: Path, workers: Workers, helpers: HelperRunner) -> None:
        self._path = path
        self._workers = workers
        self._helpers = helpers
        self._read = _NOTHING

    async def credentials(self, registry: str) -> Credentials | None:
        """Return the credentials from the host's helper, else from the file itself, else None.

        If the helper fails, that is logged, and the file's own entry is used.  Cancelling kills the helper.
        """
        config = await self._current()
        helper = config.helper_for(registry)
        if helper:
            try:
                found = await self._helpers.get(helper, helper_key(registry))
            except HelperFailed as error:
                log.warn("no credentials for {registry} from Docker's config: {error}", registry=registry, error=error)
            else:
                if found is not None:
                    return found
        return config.auth_for(registry)

    def refused(self, registry: str) -> None:
        """Do nothing: the file and the helper are asked each time."""

    async def _current(self) -> DockerConfig:
        before = self._read
        self._read = read = await self._workers.run(_read, self._path, before)
        if read.complaint and read.complaint != before.complaint:
            log.warn("Docker's config.json is ignored: {reason}", reason=read.complaint)
        return read.config


def _read(path: Path, before: _Read) -> _Read:
    """Return the file's content now; `before` if its state is the same.  Blocks."""
    try:
        # O_NONBLOCK: without it, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _NOTHING
    except OSError as error:
        return _Read(None, DockerConfig(), f"it cannot be read ({error.strerror})")
    # `open(descriptor)` alone would fail for a directory, and leave the descriptor open.
    try:
        found = os.fstat(descriptor)
        state = (found.st_mtime_ns, found.st_ino, found.st_size)
        if before.state == state:
            return before
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_CONFIG:
            return _Read(state, DockerConfig(), "it is too large, or not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(_LARGEST_CONFIG)
    except OSError as error:
        return _Read(None, DockerConfig(), f"it cannot be read ({error.strerror})")
    finally:
        os.close(descriptor)
    try:
        return _Read(state, DockerConfig.parse(data))
    except BadConfig as error:
        return _Read(state, DockerConfig(), str(error))
