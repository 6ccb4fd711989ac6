"""How all charts look, and whether any can be drawn."""

from __future__ import annotations

import importlib.util
from typing import Any

from coldstream.errors import UsageError

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
        raise UsageError("charts need matplotlib", hint="run: pip install 'coldstream[charts]'")
