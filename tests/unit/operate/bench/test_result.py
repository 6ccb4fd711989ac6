from __future__ import annotations

import dataclasses
import json
import xml.dom.minidom
from typing import Any

import pytest

from coldstream.cli.bench_command import text_of
from coldstream.operate.bench import bench_chart, bench_page
from coldstream.operate.bench.contestant import Contestant, Skipped
from coldstream.operate.bench.floors import Floors
from coldstream.operate.bench.result import Result, Row, best, seconds_text, spread, verdict
from coldstream.operate.bench.runner import Run

BYTES = 1 << 30


def a_run(seconds: float, **more: Any) -> Run:
    return Run(
        seconds=seconds,
        cpu_seconds=2 * seconds,
        whole_seconds=seconds + 1,
        whole_cpu_seconds=2 * seconds + 1,
        memory_bytes=100 << 20,
        **more,
    )


def a_row(name: str, *seconds: float, **more: Any) -> Row:
    given: dict[str, Any] = {"label": name, "bytes": BYTES, "same": True, **more}
    return Row(name=name, runs=tuple(map(a_run, seconds)), **given)


def a_result(**more: Any) -> Result:
    given: dict[str, Any] = {
        "model": "org/<m>",
        "uri": "s3://models/org/m",
        "bytes": BYTES,
        "files": 2,
        "device": "cpu",
        "rounds": 3,
        "seed": 0,
        "loads": (
            a_row("coldstream", 1.0, 1.5, 2.0, floors={"bucket": BYTES / 1.2, "link": 2 * BYTES}),
            a_row("runai", 3.0, 6.0, 9.0),
            a_row("boto3", 0.5, same=False),
            a_row("s3fs", failure="exit 1: no <way>"),
        ),
        "skipped": (Skipped(name="obstore", label="obstore", reason="obstore is not installed", hint="run: pip"),),
        "floors": Floors(bucket=BYTES / 1.2, connections=64, connection=1e8, core=1e9, cores=2, tls=True),
        "dropped": "nothing",
        "dropped_said": "the page cache was left alone",
        "verified": True,
        "machine": "2 cores",
        "versions": {"coldstream": "1"},
        "began": "2026-11-24T10:00:00+00:00",
    }
    return Result(**(given | more))


def test_the_middle_the_least_and_the_most() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.least, found.most) == (2.0, 1.0, 3.0)


def test_the_terms_say_what_was_dropped_and_who_checks() -> None:
    terms = "\n".join(a_result().terms)
    assert "3 x all in turn" in terms
    assert "the page cache was left alone" in terms
    assert "coldstream compares every chunk" in terms
    assert "no loader checks what arrives" in "\n".join(a_result(verified=False).terms)
    assert "compares" not in "\n".join(a_result(loads=(a_row("runai", 1.0),)).terms)
    assert a_result().document()["terms"] == a_result().terms
    assert "coldstream compares every chunk" in text_of(a_result())


def test_states() -> None:
    ours, runai, boto3, s3fs = a_result().loads
    assert [row.state for row in (ours, runai, boto3, s3fs)] == ["ok", "ok", "wrong", "failed"]
    assert not a_result().sound
    assert a_result(loads=(ours, runai)).sound
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
    assert line.startswith("coldstream: 1.50 s, runai: 6.00 s, 4.0 x as fast; it took 80% of what the bucket gives")
    slow = (a_row("coldstream", 6.0), a_row("runai", 3.0))
    assert verdict(slow, "load") == ["coldstream: 6.00 s, runai: 3.00 s, 2.0 x as slow"]
    assert verdict((a_row("coldstream", 6.0),), "start") == ["coldstream: 6.00 s"]
    assert verdict((a_row("runai", 6.0),), "load") == []


def test_floors_of_a_contestant() -> None:
    floors = Floors(card=1e9, bucket=5e8, connection=1e8, core=4e8, cores=2, disk=3e9, pcie=2e10, tls=True)
    asks = Contestant(name="runai", label="", command=(), environ={}, first_environ={}, connections=8)
    assert floors.of(asks, from_disk=True) == {"pcie": 2e10, "link": 1e9, "bucket": 5e8, "connections": 8e8, "tls": 8e8}
    warm = dataclasses.replace(asks, connections=None)
    assert floors.of(warm, from_disk=True) == {"pcie": 2e10, "disk": 3e9}
    assert floors.of(warm, from_disk=False) == {"pcie": 2e10}
    assert Floors().lines() == []


def test_text_names_what_failed_what_is_wrong_and_what_is_missing() -> None:
    text = text_of(a_result())
    assert "failed   s3fs: exit 1: no <way>" in text
    assert "wrong    boto3" in text
    assert "skipped  obstore: obstore is not installed   run: pip" in text
    assert "80% bucket" in text
    assert "nothing to compare with" not in text
    alone = text_of(a_result(loads=a_result().loads[:1]))
    assert "nothing to compare with" in alone
    assert max(map(len, text.splitlines())) <= 160


def test_the_document_is_json() -> None:
    found = json.loads(json.dumps(a_result().document()))
    assert [row["state"] for row in found["loads"]] == ["ok", "ok", "wrong", "failed"]
    assert found["loads"][1]["times_best"] == 4.0
    assert found["skipped"] == [
        {"name": "obstore", "label": "obstore", "of": "load", "reason": "obstore is not installed", "hint": "run: pip"}
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234, "0.12 s"), (9.99, "9.99 s"), (9.999, "10.0 s"), (123.4, "123 s")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_charts_and_the_page_show_every_row_and_no_markup() -> None:
    pytest.importorskip("matplotlib")
    result = a_result(starts=(a_row("coldstream", 20.0), a_row("vllm-default", 30.0)))
    assert bench_chart.png(result).startswith(b"\x89PNG")
    drawn = bench_chart.svgs(result)
    assert len(drawn) == 3
    ids: list[str] = []
    for text in drawn:
        document = xml.dom.minidom.parseString(text)
        ids += [node.getAttribute("id") for node in document.getElementsByTagName("*") if node.hasAttribute("id")]
    assert len(ids) == len(set(ids))
    text = bench_page.html(result)
    assert "org/&lt;m&gt;" in text
    assert "no &lt;way&gt;" in text
    assert "<way>" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
