from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.loading.options import Options
from coldstream.operate.curve_chart import curve_page
from coldstream.settings import Settings, load_settings
from coldstream.tune.connection_curve import (
    PASSES,
    STEPS,
    Curve,
    Sample,
    fit_curve,
    measure_curve,
    save_curve,
    saved_curve,
    steady,
)
from tests.checkpoints import sharded_checkpoint
from tests.servers.ranged import RangedServer


@given(st.floats(1e6, 1e8), st.integers(0, 7), st.floats(0.97, 1.03))
def test_a_curve_is_found_again(each: float, doublings: int, noise: float) -> None:
    most = each * 2**doublings * 1.5
    samples = [
        Sample(step, min(step * each, most) * (noise if index % 2 else 1 / noise)) for index, step in enumerate(STEPS)
    ]
    curve = fit_curve(samples)
    assert curve.each == pytest.approx(each, rel=0.1)
    for step in STEPS:
        assert curve.at(step) == pytest.approx(min(step * each, most), rel=0.15)
    assert curve.at(curve.connections) == pytest.approx(curve.at(STEPS[-1]), rel=0.15)


def test_one_connection_may_be_all_there_is() -> None:
    curve = fit_curve([Sample(1, 5e8), Sample(2, 5.1e8)])
    assert curve.connections <= 2
    assert curve.at(64) == 5.1e8


def test_the_ramp_does_not_count() -> None:
    seen = [(t / 10, 0 if t < 10 else (t - 10) * 1000) for t in range(31)]
    assert steady(seen) == pytest.approx(10_000, rel=0.01)
    assert steady([]) == 0.0
    assert steady([(0.0, 5)]) == 0.0
    assert steady([(0.0, 0), (0.0, 5)]) > 0


def test_a_real_server_is_measured(tmp_path: Path) -> None:
    files = sharded_checkpoint(shards=2, layers=2)
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ={})
    told: list[Sample] = []
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        curve = measure_curve(
            f"{server.url}/m",
            Options(settings=settings, framework="buffer"),
            steps=(1, 2),
            seconds=0.5,
            on_sample=told.append,
        )
    assert [sample.connections for sample in told] == [1, 2]
    assert curve.samples == tuple(told)
    assert not (tmp_path / "cache/models").exists(), "the local cache is left alone"


def rates(monkeypatch: pytest.MonkeyPatch, *factors: float) -> list[int]:
    """Makes each run give 30 MB/s a connection up to 100, times the next factor of its number; the runs."""
    runs: list[int] = []

    def rate(_uri: object, options: Options, *_: object) -> float:
        runs.append(options.connections)
        nth = runs.count(options.connections) - 1
        return min(options.connections * 3e7, 1e8) * factors[nth % len(factors)]

    monkeypatch.setattr("coldstream.tune.connection_curve._rate", rate)
    return runs


def test_runs_that_agree_are_not_repeated_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = rates(monkeypatch, 1.0, 0.98, 1.02)
    curve = measure_curve("org/m", Options(framework="buffer"), passes=PASSES)
    assert runs == [1, 2, 4, 8, 16] * 3
    assert curve.spread == pytest.approx(0.04)
    assert not curve.is_noisy
    assert (curve.each, curve.most, curve.connections) == (3e7, 1e8, 4)


def test_one_run_that_went_astray_costs_another_and_not_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = rates(monkeypatch, 1.0, 0.2, 1.01, 0.99)
    curve = measure_curve("org/m", Options(framework="buffer"), steps=(1, 2), passes=PASSES)
    assert len(runs) == 2 * 4
    assert not curve.is_noisy
    assert curve.each == pytest.approx(3e7, rel=0.02)


def test_runs_that_never_agree_are_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = rates(monkeypatch, 1.0, 0.5, 2.0)
    curve = measure_curve("org/m", Options(framework="buffer"), steps=(1, 2), passes=PASSES)
    assert len(runs) == 2 * PASSES[1]
    assert curve.is_noisy


def test_a_single_look_has_no_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 1.0)
    curve = measure_curve("org/m", Options(framework="buffer"), steps=(1, 2))
    assert curve.spread is None
    assert not curve.is_noisy


def settings(tmp_path: Path, store: str = "s3://bucket") -> Settings:
    return load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "COLDSTREAM_STORE": store}, environ={})


CURVE = Curve(samples=(Sample(1, 3e7), Sample(2, 6e7), Sample(4, 7e7)), each=3e7, most=7e7)


def test_a_measurement_is_kept_for_its_store_and_for_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    assert saved_curve(settings(tmp_path)) is None
    path = save_curve(CURVE, settings(tmp_path))
    assert saved_curve(settings(tmp_path)) == CURVE
    assert saved_curve(settings(tmp_path, "s3://other")) is None
    later = time.time() + 8 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert saved_curve(settings(tmp_path)) is None
    monkeypatch.undo()
    path.write_text('{"format": 1, "samples": "x"}')
    assert saved_curve(settings(tmp_path)) is None
    assert saved_curve(load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ={})) is None


def test_the_curve_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    report = curve_page(CURVE, "<script>$x$")
    assert report.png().startswith(b"\x89PNG")
    page = report.html()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
