"""The page that every chart of a command is shown on."""

from __future__ import annotations

from coldstream.operate.charts import PageSection, TableRow, render_page


def test_everything_but_the_chart_is_escaped() -> None:
    section = PageSection(
        title="<section>",
        chart="<svg></svg>",
        text=["<text>"],
        facts="<facts>",
        heading=("<name>", "<figure>", "<note>"),
        rows=[TableRow("<row>", ["<cell>"], "<why>"), TableRow("<group>", kind="group")],
    )
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
