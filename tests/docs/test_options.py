"""docs/configuration.md has the table of settings as it is."""

from __future__ import annotations

from tests.docs.settings_table import PAGE, page_with_table


def test_the_page_has_the_table_of_settings() -> None:
    page = PAGE.read_text()
    assert page == page_with_table(page), "run: python -m tests.docs.settings_table"
