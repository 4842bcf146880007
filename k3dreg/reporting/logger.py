"""Logging: txaio's loggers on Twisted's log, so a level can be set and twistd decides where lines go.

log = make_logger()
log.info("pulled {name}", name=name)
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import txaio

txaio.use_twisted()

LEVELS = ("debug", "info", "warn", "error")


class Logger(Protocol):
    """What modules use of a txaio logger.  The first argument is a format string for the keyword arguments."""

    def debug(self, text: str, **values: Any) -> None: ...

    def info(self, text: str, **values: Any) -> None: ...

    def warn(self, text: str, **values: Any) -> None: ...

    def error(self, text: str, **values: Any) -> None: ...

    def failure(self, text: str, **values: Any) -> None: ...


class _MakeLogger(Protocol):
    def __call__(self) -> Logger: ...


# An alias, not a wrapper: txaio names a logger after the module of its caller's frame.
# By name: txaio fills these in when `use_twisted` is called, which no type checker sees.
make_logger = cast(_MakeLogger, getattr(txaio, "make_logger"))  # noqa: B009


def set_level(level: str) -> None:
    """Show lines of this level (one of `LEVELS`) and more important ones.

    Not `txaio.start_logging()`: twistd has begun logging already.
    """
    getattr(txaio, "set_global_log_level")(level)  # noqa: B009
