"""The common parts of k3dreg's command lines: help that fits the terminal, usage lines, `--version`."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Mapping

from twisted.python import usage

from k3dreg import __version__

# In the order in which help lists them.
COMMANDS: Mapping[str, str] = {
    "doctor": "Check the engine, the port, the disk and more, and say what to do",
    "why": "Show step by step how k3dreg answers a request for an image",
    "warm": "Prepare images before a node asks for them",
    "refresh": "Let Docker pull images whose tags have moved in their registries",
    "link": "Link an image's layers into the nodes that will pull it",
    "attach": "Point a cluster that exists at k3dreg; without a name, list clusters",
    "detach": "Put back what a cluster had before it was attached",
    "config": "Print the files that point a cluster at k3dreg",
    "ls": "List the images that were pushed",
    "rm": "Remove pushed tags or manifests",
    "gc": "Remove unreferenced pushed content, and tags that rules do not keep",
}

# Columns of the help.  Fewer leave no room beside the options' names; longer lines are hard to read.
_NARROWEST, _WIDEST = 60, 100


class CommandLine(usage.Options):
    """`usage.Options` with k3dreg's own help and version.

    `synopsis` is the usage line, `about` says what the command does, and `examples` are commands as a user types them.
    """

    synopsis = ""
    about = ""
    examples: tuple[str, ...] = ()
    longdesc = ""  # otherwise `usage.Options` shows the docstring of the module `__main__`

    def opt_version(self) -> None:
        """Print the version and exit"""
        print(f"k3dreg {__version__}")  # noqa: T201
        raise SystemExit(0)

    def opt_help(self) -> None:
        """Print this help and exit"""
        print(self, end="")  # noqa: T201
        raise SystemExit(0)

    opt_h = opt_help

    def getSynopsis(self) -> str:
        """Return the usage line, which follows twistd's own if twistd runs k3dreg."""
        if self.parent is None:
            return self.synopsis
        return f"{self.parent.getSynopsis()} {self.parent.subCommand} [OPTION]..."

    def __str__(self) -> str:
        parts = [self.getSynopsis(), wrapped(self.about), *self.sections()]
        if self.examples:
            parts.append(
                "\n".join(["Examples:" if len(self.examples) > 1 else "Example:", *map(_indented, self.examples)])
            )
        return "\n\n".join(parts) + "\n"

    def sections(self) -> list[str]:
        """Return the parts of the help between the description and the examples."""
        return [self.getUsage(width=columns()).rstrip()]


def columns() -> int:
    """Return the width for text on this terminal."""
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


def wrapped(text: str) -> str:
    """Return `text` in lines that fit the terminal."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), columns()))


def commands_section() -> str:
    """Return the list of commands, a line for each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(["Commands (k3dreg COMMAND --help says more):", *lines])


def no_command(name: str) -> str:
    """Return the error text for the unknown command `name`."""
    near = difflib.get_close_matches(name, COMMANDS, 1)
    return f"there is no command {name[:100]!r}{f'; did you mean {near[0]}?' if near else ''}"


def complaint(error: object, options: CommandLine, command: str = "") -> str:
    """Return the error text for an invalid command line: the error, the usage line, and the option for help."""
    more = f"k3dreg {command} --help" if command else "k3dreg --help"
    return f"k3dreg: {error}\n{options.synopsis}\n{more} says more.\n"


def _indented(example: str) -> str:
    return f"  {example}"
