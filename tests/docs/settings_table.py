"""Write the table of docs/configuration.md out of the table of settings: `python -m tests.docs.settings_table`."""

from __future__ import annotations

from pathlib import Path

from k3dreg.config.setting import Setting
from k3dreg.config.settings import SETTINGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
_HEAD = "| option | environment | default | on SIGHUP | |"


def page_with_table(page: str) -> str:
    """Return `page` with the table in place of the one that it has."""
    before, _, rest = page.partition(_HEAD)
    after = rest.partition("\n\n")[2]
    rows = [_row(each) for each in SETTINGS.values()]
    return before + "\n".join([_HEAD, "|---|---|---|---|---|", *rows]) + "\n" + (f"\n{after}" if after else "")


def _row(setting: Setting) -> str:
    cells = (_option(setting), _environment(setting), _default(setting), _reload(setting), _meaning(setting))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _option(setting: Setting) -> str:
    if setting.option:
        return f"`--{setting.name} {setting.value}`" if setting.value else f"`--{setting.name}`"
    return f"settings file only: `{setting.name}`" if setting.key else "-"


def _environment(setting: Setting) -> str:
    own = f"`{setting.variable}`"
    if setting.repeated:
        own += " (several: separated by spaces)"
    elif setting.is_flag:
        own += " (`on`)"
    return ", ".join([own, *(f"`{name}`" for name in (*setting.variables, *setting.consulted))])


def _default(setting: Setting) -> str:
    return setting.default_words or f"`{setting.default}`"


def _reload(setting: Setting) -> str:
    return "applied" if setting.reloadable else "restart"


def _meaning(setting: Setting) -> str:
    text = setting.help + ("; may be repeated" if setting.repeated else "")
    return f"{text}. {setting.more}" if setting.more else text


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
