"""Logging: txaio's loggers, which have levels, on Twisted's log, whose lines go where twistd's options say.

log = make_logger()
log.info("pulled {name}", name=name)
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import txaio

txaio.use_twisted()

LEVELS = ("debug", "info", "warn", "error")


class Logger(Protocol):
    """The methods of a txaio logger that modules use.  `text` is a format string for the keyword arguments."""

    def debug(self, text: str, **values: Any) -> None: ...

    def info(self, text: str, **values: Any) -> None: ...

    def warn(self, text: str, **values: Any) -> None: ...

    def error(self, text: str, **values: Any) -> None: ...

    def failure(self, text: str, **values: Any) -> None: ...


class _MakeLogger(Protocol):
    def __call__(self) -> Logger: ...


# An alias, not a wrapper: txaio names a logger after the module of its caller's frame.
# By `getattr`, because txaio sets these functions in `use_twisted`, so type checkers do not know them.
make_logger = cast(_MakeLogger, getattr(txaio, "make_logger"))  # noqa: B009


def set_level(level: str) -> None:
    """Log lines of this level (one of `LEVELS`) and more important ones only.

    It does not call `txaio.start_logging()`, because twistd has started logging already.
    """
    getattr(txaio, "set_global_log_level")(level)  # noqa: B009
