"""Medians, states, floors and the verdict; and their text and JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from coldstream.cli.bench_command import text_of
from coldstream.operate.bench.result import best, seconds_text, spread, verdict
from tests.unit.operate.bench.results import a_result, a_row


def test_spread_has_the_median_the_minimum_and_the_maximum() -> None:
    figure = spread([3.0, 1.0, 2.0])
    assert figure is not None
    assert (figure.median, figure.min, figure.max) == (2.0, 1.0, 3.0)
    assert spread([]) is None


def test_the_terms_name_the_page_cache_and_the_loaders_that_verify() -> None:
    terms = "\n".join(a_result().terms)
    assert "3 rounds of all" in terms
    assert "the page cache was left alone" in terms
    assert "coldstream verifies every chunk" in terms
    assert "no loader verifies what it receives" in "\n".join(a_result(verified=False).terms)
    assert "coldstream verifies" not in "\n".join(a_result(loads=(a_row("runai", 1.0),)).terms)
    assert a_result().document()["terms"] == a_result().terms
    assert "coldstream verifies every chunk" in text_of(a_result())


def test_states() -> None:
    ours, runai, boto3, s3fs = a_result().loads
    assert [row.state for row in (ours, runai, boto3, s3fs)] == ["ok", "ok", "wrong", "failed"]
    assert not a_result().is_sound
    assert a_result(loads=(ours, runai)).is_sound
    # One bad run is enough.
    assert dataclasses.replace(ours, failure="it took longer than 1 s").state == "failed"


def test_wrong_bytes_are_never_the_best() -> None:
    assert best(a_result().loads) == 1.5
    assert best(()) is None


def test_the_nearest_floor_is_the_lowest() -> None:
    ours = a_result().loads[0]
    assert ours.nearest is not None
    stage, share = ours.nearest
    assert stage == "bucket"
    assert share == pytest.approx(0.8)


def test_the_verdict_compares_with_the_best_sound_rival() -> None:
    (line,) = verdict(a_result().loads, "load")
    assert line.startswith(
        "coldstream: 1.50 s, runai: 6.00 s, 4.0 x as fast; it reached 80% of the bucket's throughput"
    )
    slow = (a_row("coldstream", 6.0), a_row("runai", 3.0))
    assert verdict(slow, "load") == ["coldstream: 6.00 s, runai: 3.00 s, 2.0 x as slow"]
    assert verdict((a_row("coldstream", 6.0),), "start") == ["coldstream: 6.00 s"]
    assert verdict((a_row("runai", 6.0),), "load") == []


def test_text_names_failed_wrong_and_skipped_loaders() -> None:
    text = text_of(a_result())
    assert "failed   s3fs: exit 1: no <way>" in text
    assert "wrong    boto3" in text
    assert "skipped  obstore: obstore is not installed   run: pip" in text
    assert "80% bucket" in text
    assert "nothing to compare with" not in text
    only_ours = text_of(a_result(loads=a_result().loads[:1]))
    assert "nothing to compare with" in only_ours
    assert max(map(len, text.splitlines())) <= 160


def test_the_document_is_json() -> None:
    document = json.loads(json.dumps(a_result().document()))
    assert [row["state"] for row in document["loads"]] == ["ok", "ok", "wrong", "failed"]
    assert document["loads"][1]["times_best"] == 4.0
    assert document["skipped"] == [
        {"name": "obstore", "label": "obstore", "of": "load", "reason": "obstore is not installed", "hint": "run: pip"}
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234, "0.12 s"), (9.99, "9.99 s"), (9.999, "10.0 s"), (123.4, "123 s")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
