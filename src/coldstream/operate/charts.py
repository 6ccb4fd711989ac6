"""How all charts look, and whether any can be drawn."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from coldstream.errors import UsageError
from coldstream.machine.extras import install_hint

INK, FAINT = "#22272e", "#8b929c"
# For matplotlib. Text is text, whatever a model is called, neither mathematics nor TeX; equal data give equal bytes.
SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "coldstream",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "text.color": INK,
}


def check() -> None:
    """Raises UsageError when nothing can be drawn: matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("charts need matplotlib, which is not installed", hint=install_hint("charts"))


@contextmanager
def figures(width_inches: float) -> Iterator[Callable[[float], Any]]:
    """Gives what makes a figure of a height in inches, in the look of all charts.

    Args:
        width_inches: Of each.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    def new_figure(height_inches: float) -> Figure:
        return Figure(figsize=(width_inches, height_inches), layout="constrained", facecolor="white")

    # Whatever style the user has for charts of their own.
    with mpl.rc_context(), warnings.catch_warnings():
        # A script without a font is drawn as boxes, and said nothing about.
        warnings.simplefilter("ignore")
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield new_figure
