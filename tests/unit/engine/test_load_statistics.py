"""The schema of a load's statistics."""

from __future__ import annotations

import pytest

from coldstream.engine.load_statistics import LoadStatistics


def test_statistics_are_read_back_as_they_were_written() -> None:
    statistics = LoadStatistics(received_bytes=7, local_bytes=5, retry_causes={"busy": 2}, first_ready_seconds=0.5)
    assert LoadStatistics.unpack(statistics.pack()) == statistics
    assert statistics.loaded_bytes == 12


def test_the_mean_of_connections_is_over_the_whole_load() -> None:
    assert LoadStatistics(flying_seconds=30.0, seconds=10.0).connections_mean == pytest.approx(3.0)
    assert LoadStatistics().connections_mean == 0
