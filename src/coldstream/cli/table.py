"""Rows of text in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coldstream.cli.session import coloured
from coldstream.printable import printable


def table_text(
    rows: Sequence[Sequence[str]], *, colours: Mapping[str, str] | None = None, coloured_column: int = 0
) -> str:
    """A line for each row; every column is as wide as its widest cell.

    Args:
        rows: Of one length, the heading first.
        colours: Of the cells of one column, by what they say.
        coloured_column: Which.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colour := (colours or {}).get(row[coloured_column]):
            cells[coloured_column] = coloured(cells[coloured_column], colour)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
