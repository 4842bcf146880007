"""Credentials from Docker's `config.json` and the helpers it names: what `docker login` left behind."""

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

# Bytes.  Docker's own has a few KiB; anything near this is something else.
_LARGEST_CONFIG = 1024 * 1024


@frozen
class _Read:
    """What was read, and the state of the file then: modification time in ns, inode, size; None if there was none."""

    state: tuple[int, int, int] | None
    config: DockerConfig
    complaint: str = ""


_NOTHING = _Read(None, DockerConfig())


def config_path(environment: Mapping[str, str]) -> Path:
    """Where Docker's command line keeps it: in `DOCKER_CONFIG`, else in `~/.docker`."""
    directory = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME", "/"), ".docker")
    return Path(directory) / "config.json"


class ConfigFile:
    """Looks into the file whenever it is asked, so `docker login` and `logout` count at once.

    A file that cannot be used is told of in one log line, and again when it has changed.
    """

    name = "config.json"

    def __init__(self, path: Path, workers: Workers, helpers: HelperRunner) -> None:
        self._path = path
        self._workers = workers
        self._helpers = helpers
        self._read = _NOTHING

    async def credentials(self, registry: str) -> Credentials | None:
        """From the helper that is in charge of the host, else from the file itself.

        Trouble with a helper is logged, and the file's own entry is used.  Cancelling ends the helper.
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
        """Nothing is remembered: file and helper are asked each time."""

    async def _current(self) -> DockerConfig:
        before = self._read
        self._read = read = await self._workers.run(_read, self._path, before)
        if read.complaint and read.complaint != before.complaint:
            log.warn("Docker's config.json is ignored: {reason}", reason=read.complaint)
        return read.config


def _read(path: Path, before: _Read) -> _Read:
    """What the file says now; `before` if it has not changed.  Does I/O."""
    try:
        # Not blocking, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _NOTHING
    except OSError as error:
        return _Read(None, DockerConfig(), f"it cannot be read ({error.strerror})")
    # Not by `open`, which fails for a directory, and leaves its descriptor open.
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
