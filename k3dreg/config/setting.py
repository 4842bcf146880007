"""The description of a setting: its names, parser, default and documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import Factory, field, fields, frozen

T = TypeVar("T")


@frozen
class Given:
    """The argument of a setting's parser: the texts that were given for the setting `name`, or its default.

    `environment` is that of the process with the settings file's additions.  `sockets` are the endpoint strings of the
    service manager's sockets.
    """

    name: str
    values: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    sockets: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The value of a setting that is not repeated; "" for none."""
        return self.values[-1] if self.values else ""


@frozen
class Setting:
    """A row of the table of settings, `k3dreg.config.settings.Config`.

    `name` is the name of the option and the key in the settings file.  With neither `option` nor `key` it is the name
    of an environment variable.  `parse` returns the value, or raises `usage.UsageError`, which says what is wrong and
    what to do.  `value` is the placeholder for the option's value in the documentation; an option without is a flag.

    `variables` are environment variables of other programs with the same meaning.  `consulted` are variables that
    `parse` looks at if nothing was given.  Both come after `K3DREG_…` and before the settings file.

    `help` is one sentence in Markdown, for `--help` and the documentation.  `more` follows it in the documentation.
    Both end without a full stop.  `default_words`, in Markdown, replaces `default` in both places.

    `repeated` settings have several values.  SIGHUP applies changes of `reloadable` settings.
    """

    name: str
    parse: Callable[[Given], Any]
    help: str
    more: str
    value: str
    default: str
    default_words: str
    reloadable: bool
    repeated: bool
    option: bool
    key: bool
    variables: tuple[str, ...]
    consulted: tuple[str, ...]

    @property
    def variable(self) -> str:
        """The name of k3dreg's own environment variable."""
        return "K3DREG_" + self.name.upper().replace("-", "_") if self.option or self.key else self.name

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value.  In the environment and the settings file, a flag is `on` or `off`."""
        return self.option and not self.value

    @property
    def help_line(self) -> str:
        """The text for `--help`."""
        line = self.help + ("; may be repeated" if self.repeated else "")
        return (line if self.is_flag else f"{line} [{self.default_words or self.default}]").replace("`", "")

    def given(
        self, values: tuple[str, ...] = (), environment: Mapping[str, str] | None = None, sockets: tuple[str, ...] = ()
    ) -> Given:
        """Return the argument of `parse`, with the default if there are no `values`."""
        return Given(self.name, values or ((self.default,) if self.default else ()), environment or {}, sockets)


def setting(
    name: str,
    parse: Callable[[Given], T],
    help: str,  # noqa: A002  (the word of argparse and of `--help`)
    *,
    more: str = "",
    value: str = "",
    default: str = "",
    default_words: str = "",
    reloadable: bool = False,
    repeated: bool = False,
    option: bool = True,
    key: bool = True,
    variables: tuple[str, ...] = (),
    consulted: tuple[str, ...] = (),
    secret: bool = False,
) -> T:
    """Return an attrs field that carries its `Setting`.  The arguments are those of `Setting`.

    `secret` keeps the value out of the class's `repr`.  The field's default is the parsed default of the setting.
    """
    row = Setting(
        name=name,
        parse=parse,
        help=help,
        more=more,
        value=value,
        default=default,
        default_words=default_words,
        reloadable=reloadable,
        repeated=repeated,
        option=option,
        key=key,
        variables=variables,
        consulted=consulted,
    )
    default_value = Factory(lambda: parse(row.given()))
    return field(default=default_value, repr=not secret, metadata={Setting: row})


def settings_of(table: type[Any]) -> Mapping[str, Setting]:
    """Return the settings of an attrs class, by the names of its fields and in their order."""
    return {each.name: each.metadata[Setting] for each in fields(table)}
