"""What the command lines of all of k3dreg's commands have in common."""

from __future__ import annotations

from twisted.python import usage

from k3dreg import __version__


class CommandLine(usage.Options):
    """`usage.Options`, whose `--version` would be Twisted's."""

    def opt_version(self) -> None:
        """Print the version and exit"""
        print(f"k3dreg {__version__}")  # noqa: T201
        raise SystemExit(0)
