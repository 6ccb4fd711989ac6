"""Loads by the library, in the metrics' file that the environment names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import coldstream
from coldstream.errors import NotFoundError
from coldstream.loading import ownership
from coldstream.loading.options import Options
from coldstream.loading.sharing import Share
from coldstream.loading.streaming import Load
from coldstream.settings import Settings, load_settings
from coldstream.telemetry.metrics.textfile import parse
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.servers import prometheus as real
from tests.servers.ranged import RangedServer
from tests.unit.telemetry.metrics.loads import value

NAME = "org/m"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=2, rows=256, columns=256)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/org/m/{path}": content for path, content in files.items()}) as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "coldstream.prom"


@pytest.fixture
def settings(tmp_path: Path, file: Path) -> Settings:
    return load_settings(
        {}, environ={"COLDSTREAM_METRICS_FILE": str(file), "COLDSTREAM_CACHE_DIR": str(tmp_path / "c")}
    )


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_logged", set())


def drained(tensors: Iterator[tuple[str, Any]]) -> None:
    """Takes all, and keeps none."""
    assert sum(1 for _ in tensors)


def read(file: Path, name: str, **labels: str) -> float | None:
    return value(parse(file.read_bytes(), where="it"), name, **labels)


def loads(file: Path, **labels: str) -> float | None:
    return read(file, "coldstream_loads_total", **{"model": NAME, "source": "https", "verified": "unknown", **labels})


def test_every_way_of_loading_counts_once(
    server: RangedServer, settings: Settings, file: Path, files: dict[str, bytes]
) -> None:
    uri, given = f"{server.url}/org/m", {"settings": settings, "cache": False}
    made = {name: torch.empty_like(tensor) for name, tensor in coldstream.load(uri, **given).items()}
    assert loads(file, outcome="ok", verified="no") == 1
    drained(coldstream.stream(uri, framework="buffer", **given))
    assert loads(file, outcome="ok", verified="no") == 2
    module = torch.nn.Module()
    for name, tensor in made.items():
        module.register_buffer(name.replace(".", "_"), tensor)
    coldstream.load_into(module, uri, strict=False, **given)
    assert loads(file, outcome="ok", verified="no") == 3
    assert read(file, "coldstream_load_seconds_count", model=NAME) == 3
    assert read(file, "coldstream_cache_loads_total", result="off") == 3
    weights = sum(len(content) for path, content in files.items() if path.endswith(".safetensors"))
    received = read(file, "coldstream_load_bytes_total", model=NAME, **{"from": "network"})
    assert received is not None
    assert 2.5 * weights < received <= 3 * weights
    assert read(file, "coldstream_loads_running") is None
    assert real.promtool("check", "metrics", stdin=file.read_text()).strip() == ""


def test_a_share_counts_once_however_many_processes_read_it(
    server: RangedServer, settings: Settings, file: Path
) -> None:
    """Two readers of it, one of them forked from the process that shares: os.fork"""
    options = Options(settings=settings, cache=False)
    with Share(f"{server.url}/org/m", consumers=2, options=options) as shared:
        child = os.fork()
        if child == 0:
            try:
                drained(coldstream.attach(shared.address, framework="buffer"))
                shared._counted()
            finally:
                os._exit(0)
        drained(coldstream.attach(shared.address, framework="buffer"))
        os.waitpid(child, 0)
        assert shared.wait(60)
    assert loads(file, outcome="ok", verified="no") == 1
    shared.close()
    assert loads(file, outcome="ok", verified="no") == 1


def test_loads_that_fail_or_are_left(server: RangedServer, settings: Settings, file: Path) -> None:
    uri = f"{server.url}/org/m"
    given: dict[str, Any] = {"settings": settings, "cache": False}
    with pytest.raises(NotFoundError):
        coldstream.load(f"{server.url}/org/other", **given)
    assert loads(file, model="org/other", outcome="failed") == 1
    with pytest.raises(NotFoundError):
        coldstream.share(f"{server.url}/org/other", consumers=1, **given)
    assert loads(file, model="org/other", outcome="failed") == 2
    assert read(file, "coldstream_load_failures_total", kind="not-found") == 2
    stalled = server.add("stall", r"GET .*model-00002.*\.safetensors", first=2, at=1 << 10, times=None)
    with coldstream.stream(uri, framework="buffer", **given) as loading:
        next(loading)
    assert loads(file, outcome="cancelled") == 1
    stalled.release()
    stalled = server.add("stall", r"GET .*model-00002.*\.safetensors", first=2, at=1 << 10, times=None)
    with coldstream.share(uri, consumers=1, **given):
        pass
    assert loads(file, outcome="cancelled") == 2
    stalled.release()
    Load(uri, Options(**given)).close()
    assert loads(file, outcome="cancelled") == 2, "one that never began"


def test_loads_at_the_same_time_lose_no_count(server: RangedServer, settings: Settings, file: Path) -> None:
    def one() -> None:
        drained(coldstream.stream(f"{server.url}/org/m", framework="buffer", cache=False, settings=settings))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads(file, outcome="ok", verified="no") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metrics.txt", "does not end in .prom"),
        ("nowhere/c.prom", "is in a folder that does not exist"),
        ("apt.prom", "holds apt_upgrades, which does not belong to coldstream"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_warning_and_no_failure(
    name: str, message: str, server: RangedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "apt.prom").write_text("# TYPE apt_upgrades gauge\napt_upgrades 3\n")
    settings = load_settings({}, environ={"COLDSTREAM_METRICS_FILE": str(tmp_path / name)})
    with caplog.at_level(logging.WARNING, "coldstream"):
        for _ in range(2):
            assert coldstream.load(f"{server.url}/org/m", cache=False, settings=settings)
    (record,) = caplog.records
    assert message in record.getMessage()
    assert (tmp_path / "apt.prom").read_text().endswith("apt_upgrades 3\n")


def test_a_file_that_goes_meanwhile_fails_no_load(
    server: RangedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    settings = load_settings({}, environ={"COLDSTREAM_METRICS_FILE": str(folder / "c.prom")})
    with caplog.at_level(logging.WARNING, "coldstream"):
        loading = coldstream.stream(f"{server.url}/org/m", cache=False, framework="buffer", settings=settings)
        next(loading)
        folder.rmdir()
        for _ in loading:
            pass
    assert loading.report is not None
    (record,) = caplog.records
    assert record.getMessage().startswith("the metrics are not kept: cannot use the metrics' file")


def test_an_internal_error_in_the_metrics_does_not_fail_a_load(
    server: RangedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from coldstream.telemetry.metrics.registry import Metrics

    def fail(self: Metrics) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Metrics, "end", fail)
    with caplog.at_level(logging.WARNING, "coldstream"):
        assert coldstream.load(f"{server.url}/org/m", cache=False, settings=settings)
    assert [record.getMessage() for record in caplog.records] == ["the metrics are not kept: KeyError"]


def test_a_command_counts_its_load_once(tmp_path: Path, files: dict[str, bytes], file: Path) -> None:
    """COLDSTREAM_METRICS_FILE=FILE coldstream load ./m"""
    folder = tmp_path / "m"
    folder.mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content)
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_METRICS_FILE"] = str(file)
    command.run("load", str(folder))
    labels = {"model": "m", "outcome": "ok", "source": "folder", "verified": "no"}
    assert read(file, "coldstream_loads_total", **labels) == 1


def test_without_a_file_nothing_is_imported(server: RangedServer) -> None:
    code = (
        "import sys, coldstream\n"
        f"for _ in coldstream.stream({server.url + '/org/m'!r}, framework='buffer', cache=False): pass\n"
        "found = [name for name in sys.modules if name.startswith(('prometheus', 'coldstream.telemetry.metrics'))]\n"
        "assert not found, found\n"
    )
    environ = {name: text for name, text in os.environ.items() if not name.startswith("COLDSTREAM_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
