"""The `k3dreg` command, which runs `twistd --nodaemon k3dreg` or a command such as `k3dreg doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence

from twisted.application import app
from twisted.python import usage
from twisted.scripts import twistd

from k3dreg.config.options import Options
from k3dreg.config.usage import COMMANDS, complaint, no_command
from twisted.plugins.k3dreg_plugin import k3dreg


# twistd imports `ServerOptions` from one of two modules, by the platform, which type checkers do not follow.
class _ServerOptions(twistd.ServerOptions):  # type: ignore[name-defined,misc]
    """twistd's options with k3dreg as the only command.

    twistd would load all plugins to list their commands, and with them Twisted's and Python's test runners.  That takes
    time at the start, and memory as long as the daemon runs.
    """

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Callable[[], usage.Options], str]]:
        """The only command, in the form of `usage.Options.subCommands`."""
        # twistd finds the plugin to run here.
        self.loadedPlugins = {k3dreg.tapname: k3dreg}
        yield k3dreg.tapname, None, lambda: k3dreg.options(), k3dreg.description


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the registry in the foreground until a signal stops it, or run the command that the first argument names.

    Exits with status 2 and a usage line for wrong arguments.  `arguments` are those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:  # help COMMAND is COMMAND --help
        given = [*given[1:2], "--help"]
    if given and given[0] in COMMANDS:
        _run_command(given[0], given[1:])
        return
    options = Options()
    if given and not given[0].startswith("-"):
        sys.stderr.write(complaint(no_command(given[0]), options))
        sys.exit(2)
    try:
        options.parseOptions(given)
    except usage.UsageError as error:
        sys.stderr.write(complaint(error, options))
        sys.exit(2)
    # No pid file: several daemons may run in one directory, and a service manager knows the process anyway.
    sys.argv = ["k3dreg", "--nodaemon", "--pidfile=", "k3dreg", *given]
    app.run(twistd.runApp, _ServerOptions)


def _run_command(command: str, arguments: Sequence[str]) -> None:
    # Imported here, because the daemon does not need them, and imported modules stay in memory.
    if command in ("ls", "gc"):
        from k3dreg.commands import housekeeping

        housekeeping.main(command, arguments, dict(os.environ))
    elif command == "rm":
        from k3dreg.commands import removal

        removal.main(arguments, dict(os.environ))
    elif command == "config":
        from k3dreg.commands import config_files

        config_files.main(arguments)
    else:
        from k3dreg.commands import command as tools

        tools.main(command, arguments)
