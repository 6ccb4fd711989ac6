"""Draws the two starts that `coldstream demo` measures, one above the other: docs/timelines.svg of the README.

    .venv/bin/coldstream demo --json > demo.json
    .venv/bin/python benchmarks/timelines.py demo.json > docs/timelines.svg

The picture carries its own background, so that it reads alike on light and dark pages.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 880, 24, 24, 56, 26
_CHARACTER = 6.6
_FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""
# Phases of the timeline, merged into what a reader of the README tells apart; the order is that of the legend.
_KINDS = {
    "weights": ("weights over the network", "#c2571a"),
    "imports": ("vLLM's imports and processes", "#4c78a8"),
    "engine": ("engine: configuration, weights into layers, first run", "#6e7f94"),
}
_IMPORTS = {"resolve", "imports"}


def main() -> None:
    """Reads the demo's JSON and prints the picture."""
    document = json.loads(Path(sys.argv[1]).read_text())
    print("\n".join(draw(list(document["starts"].values()))))


def draw(starts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of the SVG: the streamed start first, the downloaded one second."""
    total = max(start["ready_seconds"] for start in starts)
    scale = (_WIDTH - _LEFT - _RIGHT) / (10 * -(-total // 10))
    height = _TOP + 2 * 96 + 62
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(_summary(starts))}" {_FONT} font-size="13">'
    )
    yield f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff" stroke="#d0d7de"/>'
    yield '<g fill="#1f2328">'
    yield f'<text x="{_LEFT}" y="30" font-size="15" font-weight="600">{escape(_summary(starts))}</text>'
    for number, start in enumerate(starts):
        yield from _start(start, _TOP + number * 96, scale)
    axis = _TOP + 2 * 96
    yield from _axis(axis, scale, int(10 * -(-total // 10)))
    yield from _legend(axis + 42)
    yield "</g></svg>"


def _summary(starts: Sequence[dict[str, Any]]) -> str:
    streamed, downloaded = (start["ready_seconds"] for start in starts)
    return f"vLLM answers after {streamed:.0f} s with streaming, after {downloaded:.0f} s with a download first"


def _start(start: dict[str, Any], top: float, scale: float) -> Iterator[str]:
    streamed = start["loader"] == "coldstream"
    title = "coldstream: weights stream while vLLM starts" if streamed else "download first, then start vLLM"
    yield f'<text x="{_LEFT}" y="{top + 14}" font-weight="600">{title}</text>'
    # The lane of the weights lies above the lane of vLLM, so that what overlaps can be seen to overlap.
    for lane, kind, begin, stop in _bars(start):
        label = f"{stop - begin:.0f} s" if (stop - begin) * scale > 5 * _CHARACTER else ""
        yield from _bar(top + 22 + lane * _ROW, _LEFT + begin * scale, (stop - begin) * scale, kind, label)
    ready = _LEFT + start["ready_seconds"] * scale
    yield (
        f'<line x1="{ready:.1f}" x2="{ready:.1f}" y1="{top + 20}" y2="{top + 22 + 2 * _ROW}" '
        'stroke="#1a7f37" stroke-width="2"/>'
    )
    anchor, offset = ("start", 8) if ready + 90 < _WIDTH - _RIGHT else ("end", -8)
    y = top + 22 + (_ROW * 1.5 if anchor == "start" else _ROW * 0.5)
    yield (
        f'<text x="{ready + offset:.1f}" y="{y + 1:.1f}" fill="#1a7f37" font-weight="600" text-anchor="{anchor}">'
        f"ready {start['ready_seconds']:.1f} s</text>"
    )


def _bars(start: dict[str, Any]) -> Iterator[tuple[int, str, float, float]]:
    for span in start["spans"]:
        if span["name"] == "stream":
            yield 0, "weights", span["start"], span["stop"]
    merged: list[list[Any]] = []
    for phase in start["phases"]:
        lane = 0 if phase["name"] == "download" else 1
        kind = "weights" if lane == 0 else "imports" if phase["group"] in _IMPORTS else "engine"
        if merged and merged[-1][:2] == [lane, kind]:
            merged[-1][3] = phase["stop"]
        else:
            merged.append([lane, kind, phase["start"], phase["stop"]])
    yield from (tuple(one) for one in merged)  # type: ignore[misc]


def _bar(y: float, x: float, width: float, kind: str, label: str) -> Iterator[str]:
    fill = _KINDS[kind][1]
    yield f'<rect x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}" height="{_ROW - 6}" rx="2" fill="{fill}"/>'
    if label:
        place = f'x="{x + width / 2:.1f}" y="{y + 14.5}"'
        yield f'<text {place} fill="#ffffff" text-anchor="middle" font-size="12">{label}</text>'


def _axis(y: float, scale: float, stop: int) -> Iterator[str]:
    yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#8c959f"/>'
    for second in range(0, stop + 1, 10):
        x = _LEFT + second * scale
        anchor = "start" if second == 0 else "end" if second == stop else "middle"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}" stroke="#8c959f"/>'
        yield f'<text x="{x:.1f}" y="{y + 18}" text-anchor="{anchor}" fill="#59636e" font-size="12">{second} s</text>'


def _legend(y: float) -> Iterator[str]:
    x = float(_LEFT)
    for title, fill in _KINDS.values():
        yield f'<rect x="{x:.1f}" y="{y - 10}" width="12" height="12" rx="2" fill="{fill}"/>'
        yield f'<text x="{x + 18:.1f}" y="{y}" fill="#59636e" font-size="12">{escape(title)}</text>'
        x += 18 + len(title) * _CHARACTER + 24


if __name__ == "__main__":
    main()
