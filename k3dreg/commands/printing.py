"""The output of commands."""

from __future__ import annotations

import os
import sys


def say(line: str) -> None:
    """Print a line.

    Once the reader has gone, as `head` does, lines are dropped and the command goes on: what it removes or links must
    not depend on who reads.
    """
    try:
        print(line, flush=True)  # noqa: T201
    except BrokenPipeError:
        # Python writes what is left in the buffer at the exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
