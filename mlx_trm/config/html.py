"""Tables for notebooks, in which every text is shown and none is markup."""

from dataclasses import is_dataclass
from html import escape
from typing import Any, List, Sequence, Tuple

from mlx_trm.config.checks import section_fields


def table_html(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Write rows of text as an HTML table, all cells to the left.

    Args:
        rows: each as long as the others.
        header: names of the columns.
    """
    left = ' style="text-align:left"'
    head = "".join(f"<th{left}>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td{left}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def settings_html(config: object) -> str:
    """Write a configuration as tables that open, a section each; settings of none come first.

    Args:
        config: a dataclass whose sections are dataclasses.
    """
    plain: List[Tuple[str, str]] = []
    sections: List[str] = []
    for name, value in _settings(config):
        if not is_dataclass(value):
            plain.append((name, repr(value)))
            continue
        kind = getattr(value, "name", None)
        title = escape(f"{name}: {kind}" if kind else name)
        table = table_html([(key, repr(each)) for key, each in _settings(value)])
        sections.append(f"<details><summary><b>{title}</b></summary>{table}</details>")
    return (table_html(plain) if plain else "") + "".join(sections)


def _settings(section: Any) -> List[Tuple[str, object]]:
    """Give the fields of a dataclass that are settings."""
    return [(name, getattr(section, name)) for name in section_fields(type(section))]
