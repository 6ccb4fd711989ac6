"""The page that every chart of a command is shown on."""

from __future__ import annotations

from coldstream.operate.page import PageSection, PageTable, TableRow, render_page


def test_everything_but_the_chart_is_escaped() -> None:
    table = PageTable(
        ("<name>", "<figure>", "<note>"), [TableRow("<row>", ["<cell>"], "<why>"), TableRow("<group>", kind="group")]
    )
    section = PageSection(title="<section>", chart="<svg></svg>", text=["<text>"], facts="<facts>", table=table)
    page = render_page("<title>", "<subtitle>", [section], footer="<footer>")
    assert "<svg></svg>" in page
    for word in ("name", "figure", "note", "row", "cell", "why", "group", "section", "text", "facts", "subtitle"):
        assert f"&lt;{word}&gt;" in page
    assert page.count("&lt;title&gt;") == 2
    assert "&lt;footer&gt;" in page


def test_parts_that_are_empty_leave_no_element() -> None:
    page = render_page("title", "subtitle", [PageSection(text=["text"])])
    for element in ("<h2>", "<h3>", "<table>", "<footer>", '<p class="facts">'):
        assert element not in page
