"""What describes one setting: its names, how its text is read, its default, its documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import Factory, field, fields, frozen

T = TypeVar("T")


@frozen
class Given:
    """What was given for the setting `name`, or its default, and what its parser may look at besides.

    `environment` is that of the process, with what the settings file adds; `sockets` are endpoint strings of those that
    the service manager opened.
    """

    name: str
    values: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    sockets: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the one value of a setting that is not repeated; "" for none."""
        return self.values[-1] if self.values else ""


@frozen
class Setting:
    """A row of the table of settings, `k3dreg.config.settings.Config`.

    `name` is that of the option and of the settings file's key.  With neither `option` nor `key` it is that of an
    environment variable.  `parse` returns the value, or raises `usage.UsageError`, which says what is wrong and what to
    do.  `value` is how the documentation calls what follows the option; an option without is a flag.

    `variables` are those of other programs whose text means the same; `consulted` are those that `parse` looks at where
    nothing was given.  Both come after `K3DREG_…` and before the settings file.

    `help` is one sentence in Markdown, `more` is what the documentation says after it; both end without a full stop.
    `default_words` replaces `default` there and in the help; it is Markdown, too.

    `reloadable` is whether SIGHUP applies a change.
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
        """Return the name of k3dreg's own environment variable."""
        return "K3DREG_" + self.name.upper().replace("-", "_") if self.option or self.key else self.name

    @property
    def is_flag(self) -> bool:
        """Return whether the option takes no value; elsewhere the setting is `on` or `off`."""
        return self.option and not self.value

    @property
    def help_line(self) -> str:
        """Return the text for `--help`."""
        line = self.help + ("; may be repeated" if self.repeated else "")
        return (line if self.is_flag else f"{line} [{self.default_words or self.default}]").replace("`", "")

    def given(
        self, values: tuple[str, ...] = (), environment: Mapping[str, str] | None = None, sockets: tuple[str, ...] = ()
    ) -> Given:
        """Return what `parse` takes, with the default where there are no `values`."""
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

    `secret` keeps the value out of the class's `repr`.  Without a value the field has the setting's default.
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
