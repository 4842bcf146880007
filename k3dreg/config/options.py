"""The daemon's command line, which becomes, with environment and settings file, one checked `Config`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from twisted.python import usage

from k3dreg.config.inherited_sockets import inherited_endpoints
from k3dreg.config.setting import Setting
from k3dreg.config.settings import SETTINGS, Config
from k3dreg.config.sources import read_sources
from k3dreg.config.usage import COMMANDS, CommandLine, commands_section
from k3dreg.oci.errors import UsageError

_OPTIONS = tuple(each for each in SETTINGS.values() if each.option)


class Options(CommandLine):
    """The command line of `k3dreg` and `twistd k3dreg`.  After parsing, `config` is set."""

    synopsis = (
        "Usage: k3dreg [OPTION]...             run the registry in the foreground\n"
        "       k3dreg COMMAND [OPTION]...     run one of the commands below"
    )
    about = (
        "An OCI registry whose content is the local Docker engine's images. "
        "Each option can also be given in the environment: --cache-size as K3DREG_CACHE_SIZE."
    )
    examples: tuple[str, ...] = ("k3dreg --listen tcp:5000:interface=127.0.0.1 --cache-size 50GB",)
    # In the forms that `usage.Options` expects.  A repeated option needs a method: see the end of this module.
    optParameters = [  # noqa: RUF012
        [each.name, None, None, each.help_line] for each in _OPTIONS if not (each.is_flag or each.repeated)
    ]
    optFlags = [[each.name, None, each.help_line] for each in _OPTIONS if each.is_flag]  # noqa: RUF012

    config: Config
    # The variables that the settings file's `[environment]` adds to the process's own.
    settings_environment: dict[str, str]
    # The number of the service manager's sockets that the settings do not use.
    idle_sockets: int

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # A copy for `read_again`, because the daemon adds the settings file's variables to the process's environment.
        self._environment = dict(environment)
        self._arguments: tuple[str, ...] = ()
        # The service manager's sockets.  They are looked for once: later they are in use, and their descriptors may
        # have become those of other files.
        self._inherited: tuple[str, ...] | None = None
        self._repeated: dict[str, tuple[str, ...]] = {}

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line, by default this process's.  Raises `usage.UsageError`."""
        self._arguments = tuple(sys.argv[1:] if options is None else options)
        super().parseOptions(self._arguments)  # type: ignore[no-untyped-call]

    def parseArgs(self, *rest: str) -> None:
        """Raise `usage.UsageError` for words that are no options, because the daemon takes only options."""
        if not rest:
            return
        if rest[0] in COMMANDS:
            name = rest[0]
            raise usage.UsageError(f"{name!r} follows options: a command comes first, as in k3dreg {name} [OPTION]...")
        raise usage.UsageError(f"{rest[0][:100]!r} is not an option")

    def sections(self) -> list[str]:
        """Return the sections of the help, with the list of commands unless twistd, which has none, runs k3dreg."""
        return [*([] if self.parent else [commands_section()]), *super().sections()]

    def read_again(self) -> Options:
        """Return new options from the same command line and environment, and from the files as they are now.

        Blocks, and may be called in any thread.  Raises `usage.UsageError`.
        """
        again = Options(self._environment)
        again._inherited = self._inherited
        again.parseOptions(self._arguments)
        return again

    def postOptions(self) -> None:
        """Read all sources and set `config`.  Raises `usage.UsageError`, which names the setting."""
        if self._inherited is None:
            self._inherited = inherited_endpoints()
        single = {
            each.name: ("on",) if each.is_flag else (self[each.name],) for each in _OPTIONS if self.get(each.name)
        }
        try:
            sources = read_sources({**single, **self._repeated}, self._environment, self._inherited)
            self.config = sources.config()
        except UsageError as error:
            raise usage.UsageError(str(error)) from error
        self.settings_environment = sources.added_environment
        self.idle_sockets = len(self._inherited) - sum(each.startswith("systemd:") for each in self.config.listen)


def _repeated_option(setting: Setting) -> Callable[[Options, str], None]:
    def take(self: Options, value: str) -> None:
        self._repeated[setting.name] = (*self._repeated.get(setting.name, ()), value)

    take.__doc__ = setting.help_line
    return take


# `usage.Options` keeps the last value of an option in `optParameters`, and calls an `opt_` method for each value.
for _each in _OPTIONS:
    if _each.repeated:
        setattr(Options, "opt_" + _each.name.replace("-", "_"), _repeated_option(_each))
