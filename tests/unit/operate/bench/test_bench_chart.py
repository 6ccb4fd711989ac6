"""The charts and the page of a comparison."""

from __future__ import annotations

import xml.dom.minidom

import pytest

from coldstream.operate.bench.result import bench_page
from coldstream.operate.charts import svgs
from tests.unit.operate.bench.results import a_result, a_row


def test_charts_are_well_formed_and_their_ids_unique() -> None:
    pytest.importorskip("matplotlib")
    result = a_result(starts=(a_row("coldstream", 20.0), a_row("vllm-default", 30.0)))
    page = bench_page(result)
    assert page.png().startswith(b"\x89PNG")
    drawn = svgs(page.panels)
    assert len(drawn) == 3
    ids: list[str] = []
    for text in drawn:
        document = xml.dom.minidom.parseString(text)
        ids += [node.getAttribute("id") for node in document.getElementsByTagName("*") if node.hasAttribute("id")]
    assert len(ids) == len(set(ids))


def test_the_page_escapes_names_and_needs_no_network() -> None:
    pytest.importorskip("matplotlib")
    result = a_result(starts=(a_row("coldstream", 20.0), a_row("vllm-default", 30.0)))
    text = bench_page(result).html()
    assert "org/&lt;m&gt;" in text
    assert "no &lt;way&gt;" in text
    assert "<way>" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert text.count("<svg") == 3
