"""What a measurement means for a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.operate.doctor.store_checks import judged
from coldstream.tune.connection_curve import Curve, Sample, fit_curve


def curve(*rates: float) -> Curve:
    return fit_curve([Sample(connections, rate) for connections, rate in zip((1, 8, 32, 64), rates, strict=False)])


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.machine.hardware.gpus", lambda: ())


def test_a_fast_bucket() -> None:
    check = judged("org/m", 16 * 10**9, curve(31e6, 240e6, 890e6, 1.7e9))
    assert check.state == "ok"
    assert check.detail == "1: 31.0 MB/s   8: 240 MB/s   32: 890 MB/s   64: 1.70 GB/s   -> about 9.9 s for 16.0 GB"


def test_a_slow_one() -> None:
    check = judged("org/m", 140 * 10**9, curve(31e6, 240e6, 600e6, 610e6))
    assert check.state == "warn"
    assert (
        "3 m 50 s for 140 GB: a cold start takes more than a minute, bottleneck: the machine's network" in check.detail
    )
    assert "coldstream tune org/m --measure" in (check.hint or "")


def test_nothing_at_all() -> None:
    check = judged("org/m", 10**9, curve(0.0, 0.0, 0.0))
    assert (check.state, check.detail) == ("fail", "no data arrived in 2 s")


def test_a_model_that_is_too_small() -> None:
    assert "the model is too small to measure more" in judged("org/m", 10**8, curve(3e8)).detail


def test_elsewhere_than_on_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.operate.doctor.cases import case_of, looked

    monkeypatch.setattr("sys.platform", "darwin")
    assert looked(case_of(tmp_path, "org/m"), "speed").state == "skipped"
