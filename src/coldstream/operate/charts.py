"""Pages of text, tables and charts that matplotlib draws, as HTML with SVG, or all charts in one PNG."""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from coldstream.errors import UsageError
from coldstream.machine.extras import install_hint

if TYPE_CHECKING:
    import matplotlib.axes

# matplotlib is optional, and is imported where charts are drawn.
Axes: TypeAlias = "matplotlib.axes.Axes"
INK, FAINT = "#22272e", "#8b929c"
_WIDTH_INCHES = 11.2
_TITLE_INCHES = 0.5
_DPI = 144
# Model names are text, never mathematics or TeX; equal data give equal bytes.
_SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"], "font.size": 9.5, "svg.fonttype": "none",
    "svg.hashsalt": "coldstream", "text.parse_math": False, "text.usetex": False, "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "xtick.color": FAINT, "ytick.color": FAINT, "text.color": INK,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart; `draw` is called with a figure or subfigure."""

    height_inches: float
    draw: Callable[[Any], None]


def check() -> None:
    """Raises UsageError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("charts need matplotlib, which is not installed", hint=install_hint("charts"))


def svgs(panels: Sequence[Panel]) -> list[str]:
    """Each panel as an SVG element, with ids that are unique across them; UsageError if matplotlib is not installed."""
    texts = []
    with _figures() as new_figure:
        for number, panel in enumerate(panels):
            figure, out = new_figure(panel.height_inches), io.StringIO()
            panel.draw(figure)
            figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
            text = out.getvalue()
            texts.append(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{number}-", text[text.index("<svg") :]))
    return texts


def style_axes(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Removes the frame and draws the grid; bars, with a grid on x, have no line on the left either."""
    axes.spines[["top", "right", "left"] if grid == "x" else ["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, color="#e8eaed", linewidth=0.7)
    axes.set_axisbelow(True)


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names the rows of a chart of horizontal bars, the first row at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)


@contextmanager
def _figures() -> Iterator[Callable[[float], Any]]:
    """Applies the settings; yields a function that makes a figure of a height in inches."""
    check()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    def new_figure(height_inches: float) -> Figure:
        return Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained", facecolor="white")

    # The user's own matplotlib style must not show.
    with mpl.rc_context(), warnings.catch_warnings():
        # matplotlib draws letters that no font has as boxes, and warns of each.
        warnings.simplefilter("ignore")
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield new_figure


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a section's table."""

    name: str
    cells: Sequence[str] = ()
    note: str = ""  # the text on the right
    colour: str = ""  # of the key before the name, as in the charts
    kind: Literal["", "sum", "group"] = ""  # "sum" is set off by a line; "group" is the heading of the rows below it


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSection:
    """A part of a page, in the order in which it is shown."""

    title: str = ""
    chart: Panel | None = None
    text: Sequence[str] = ()
    facts: str = ""  # a last paragraph in small print
    heading: Sequence[str] = ()  # the columns of the name, of each figure and of the note of its table
    rows: Sequence[TableRow] = ()
    is_sub: bool = False  # whether it belongs to the section above it


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report with charts, which need matplotlib: UsageError if it is not installed."""

    title: str
    subtitle: str
    sections: Sequence[PageSection]
    footer: str = ""
    caption: str = ""  # above the charts in one image

    @property
    def panels(self) -> list[Panel]:
        return [section.chart for section in self.sections if section.chart]

    def html(self) -> str:
        """All of it; everything but the charts is escaped."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("coldstream.operate"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=StrictUndefined,
        )
        charts = iter(svgs(self.panels) if self.panels else ())
        return environment.get_template("page.html.j2").render(page=self, next_chart=lambda: next(charts))

    def png(self) -> bytes:
        """The charts below each other in one image."""
        with _figures() as new_figure:
            heights = [panel.height_inches for panel in self.panels]
            figure = new_figure(sum(heights) + (_TITLE_INCHES if self.caption else 0))
            if self.caption:
                figure.suptitle(self.caption, x=0.012, ha="left", fontsize=11, fontweight="bold")
            parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
            for part, panel in zip(parts[:, 0], self.panels, strict=True):
                panel.draw(part)
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
            return out.getvalue()
