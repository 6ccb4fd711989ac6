"""Charts and the page: complete, harmless, and the same every time."""

from __future__ import annotations

import re
import struct
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from coldstream.errors import UsageError
from coldstream.machine.extras import install_hint
from coldstream.operate.charts import svgs
from coldstream.operate.timeline_page import colour_of, timeline_page
from coldstream.telemetry.timeline.phases import PHASE_KINDS, SPANS, UNNAMED
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import phase_names
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import Report, finished, recorded, streamed

# A name as the Hub would not have it: markup, quotes, mathematics, and a script that no font here has.
NASTY = "<script>alert(1)</script>\"'&amp; $\\frac{1}$ $x 模型"


def several() -> list[Timeline]:
    waiting = recorded(logs.CUDA_AOT, ready=70.0)
    waiting.span("stream", 101.0, 142.5, note="<b>")
    return [streamed(), finished(waiting, report=Report(), model=NASTY), finished(recorded((), ready=9.0))]


class Reader(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    page = timeline_page(several()).html()
    reader = Reader(page)
    tags = {tag for tag, _ in reader.elements}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "base", "form"})
    for tag, attributes in reader.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "action"}:
                assert value is not None
                assert value.startswith("#"), (tag, value)
    # Namespaces are names, and nothing is fetched from there.
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page).replace("http-equiv", "")
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_names_are_text_wherever_they_stand() -> None:
    page = timeline_page(several()).html()
    assert "<script" not in page
    text = Reader(page).text
    # The title, the chart's label and the section's heading.
    assert text.count("<script>alert(1)</script>") >= 3
    assert text.count("$\\frac{1}$ $x") >= 3


def test_ids_are_unique_and_the_page_is_the_same_every_time() -> None:
    page = timeline_page(several()).html()
    ids = [attributes["id"] for _, attributes in Reader(page).elements if "id" in attributes]
    assert ids
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^)"]+)', page):
        assert reference in ids
    assert timeline_page(several()).html() == page


def test_the_charts_are_drawings_with_their_text_as_text() -> None:
    for chart in svgs(timeline_page(several()).panels):
        assert ET.fromstring(chart).tag.endswith("svg")
        assert "<text" in chart
    assert "ready 110.0 s" in svgs(timeline_page(several()).panels)[0]


def test_figures_and_verdicts_stand_in_the_page() -> None:
    text = Reader(timeline_page(several()).html()).text
    for words in (
        "61.00",
        "Weights: ready",
        "vLLM waited 1.5 s for them",
        "bundle: restored, 404 kB",
        "time to first token seconds",
        "B: loaded from the caches",
        "stream",
    ):
        assert words in text, words


@pytest.mark.parametrize("count", [1, 12])
def test_the_picture_is_a_png(count: int) -> None:
    data = timeline_page([streamed()] * count).png()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert 1500 < width < 1700
    assert 600 < height < 9000
    assert len(data) < 1_000_000


def test_one_run_needs_no_letters() -> None:
    text = Reader(timeline_page([streamed()]).html()).text
    assert "A Qwen" not in text
    assert "1 start of vLLM" in text


def test_every_phase_has_a_colour_of_its_own() -> None:
    names = {UNNAMED, *SPANS, *(kind.name for kind in PHASE_KINDS)}
    assert len({colour_of(name) for name in names}) == len(names)
    assert colour_of("weights + set-up") == colour_of("weights")
    assert colour_of("anything else") == colour_of("something else")


def test_phases_stand_in_the_order_of_time() -> None:
    found = phase_names([finished(recorded(logs.EAGER, ready=50.0, token=51.0)), streamed()])
    assert found.index("weights") < found.index("compile") < found.index("API ready") < found.index("first token")
    assert found.index("weights") < found.index("engine init") < found.index("API ready")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as caught:
        timeline_page([streamed()]).png()
    assert caught.value.hint == install_hint("charts")
