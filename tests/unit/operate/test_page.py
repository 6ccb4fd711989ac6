"""The page that every chart of a command is shown on."""

from __future__ import annotations

import pytest

from coldstream.operate import charts
from coldstream.operate.charts import Page, PageSection, Panel, TableRow


def test_everything_but_the_chart_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "svgs", lambda _panels: ["<svg></svg>"])
    section = PageSection(
        title="<section>",
        chart=Panel(1, lambda _part: None),
        text=["<text>"],
        facts="<facts>",
        heading=("<name>", "<figure>", "<note>"),
        rows=[TableRow("<row>", ["<cell>"], "<why>"), TableRow("<group>", kind="group")],
    )
    page = Page(title="<title>", subtitle="<subtitle>", sections=[section], footer="<footer>").html()
    assert "<svg></svg>" in page
    for word in ("name", "figure", "note", "row", "cell", "why", "group", "section", "text", "facts", "subtitle"):
        assert f"&lt;{word}&gt;" in page
    assert page.count("&lt;title&gt;") == 2
    assert "&lt;footer&gt;" in page


def test_parts_that_are_empty_leave_no_element() -> None:
    page = Page(title="title", subtitle="subtitle", sections=[PageSection(text=["text"])]).html()
    for element in ("<h2>", "<h3>", "<table>", "<footer>", '<p class="facts">'):
        assert element not in page
