"""The page of a comparison."""

from __future__ import annotations

import pytest

from coldstream.operate.bench import bench_page
from tests.unit.operate.bench.results import a_result, a_row


def test_the_page_escapes_names_and_needs_no_network() -> None:
    pytest.importorskip("matplotlib")
    result = a_result(starts=(a_row("coldstream", 20.0), a_row("vllm-default", 30.0)))
    text = bench_page.html(result)
    assert "org/&lt;m&gt;" in text
    assert "no &lt;way&gt;" in text
    assert "<way>" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert text.count("<svg") == 3
