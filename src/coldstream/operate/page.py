"""A page of HTML with charts and tables, without scripts, fonts or network access."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a `PageTable`."""

    name: str
    cells: Sequence[str] = ()
    note: str = ""  # the text on the right
    colour: str = ""  # of the key before the name, as in the charts
    kind: Literal["", "sum", "group"] = ""  # "sum" is set off by a line; "group" is the heading of the rows below it


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table; `heading` names the columns of the name, of each figure and of the note."""

    heading: Sequence[str]
    rows: Sequence[TableRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSection:
    """A part of a page, in the order in which it is shown."""

    title: str = ""
    chart: str = ""  # an SVG element
    text: Sequence[str] = ()
    facts: str = ""  # a last paragraph in small print
    table: PageTable | None = None
    is_sub: bool = False  # whether it belongs to the section above it


def render_page(title: str, subtitle: str, sections: Sequence[PageSection], *, footer: str = "") -> str:
    """Renders the page; everything but the charts is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("coldstream.operate"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("page.html.j2")
    return template.render(title=title, subtitle=subtitle, sections=sections, footer=footer)
