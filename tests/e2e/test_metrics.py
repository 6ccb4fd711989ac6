"""Metrics of real commands: scraped while they run, left in a file, and read by the real Prometheus."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from coldstream.node.http_endpoint import free_port
from coldstream.telemetry.metrics.metric_names import METRICS
from coldstream.telemetry.metrics.scrape_endpoint import ScrapeEndpoint
from coldstream.telemetry.metrics.textfile import Families, cost_file, parse
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.servers import prometheus as real
from tests.servers.fake_vllm import fake_vllm
from tests.servers.ranged import RangedServer
from tests.unit.telemetry.metrics.loads import value

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "docs/monitoring"
RULES = MONITORING / "alerts.yml"
NAME = "org/m"
_SCRAPE_SECONDS = 60.0


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=4, rows=1024, columns=1024)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/org/m/{path}": content for path, content in files.items()}) as server:
        yield server


@pytest.fixture
def command(tmp_path: Path, files: dict[str, bytes]) -> Command:
    made = Command(None, "", cwd=tmp_path)
    made.environ |= {
        "COLDSTREAM_STORE": str(tmp_path / "store"),
        "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"),
        "COLDSTREAM_BUNDLE_KEY": "s" * 40,
    }
    folder = tmp_path / "m"
    folder.mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content)
    return made


@contextmanager
def running(
    command: Command, *arguments: str, vllm: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """A command with `--metrics-port 0`: its process, the port, and what it has said on stderr so far."""
    process = command.start(*arguments, "--metrics-port", "0", *vllm)
    said: list[str] = []
    assert process.stderr is not None
    with process:
        try:
            for line in process.stderr:
                said.append(line)
                if match := re.search(r"^metrics +http://127\.0\.0\.1:([0-9]+)/metrics$", line):
                    break
            else:
                raise AssertionError("".join(said))
            stream = process.stderr
            reader = threading.Thread(target=lambda: said.extend(stream), daemon=True)
            reader.start()
            yield process, int(match[1]), said
            process.wait(60)
            reader.join(60)
        finally:
            process.kill()
    assert "Traceback" not in "".join(said)


def scrape(port: int) -> Families:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SCRAPE_SECONDS)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return parse(answer.read(), where="it")
    finally:
        connection.close()


def wait_for(port: int, found: Callable[[Families], object]) -> Families:
    """Scrapes until something is there."""
    until = time.monotonic() + _SCRAPE_SECONDS
    while not found(families := scrape(port)):
        assert time.monotonic() < until, families
        time.sleep(0.05)
    return families


def read(path: Path, name: str, **labels: str) -> float | None:
    return value(parse(path.read_bytes(), where="it"), name, **labels)


def test_a_load_is_scraped_while_it_runs_and_left_in_a_file(
    command: Command, server: RangedServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    """coldstream load https://host/org/m --metrics-port 0 --metrics-file FILE"""
    file = tmp_path / "coldstream.prom"
    server.add("status", r"GET .*\.safetensors", first=4, status=503, code="SlowDown", times=2)
    stalled = server.add("stall", r"GET .*model-00002.*\.safetensors", first=2, at=1 << 20, times=None)
    arguments = ("load", f"{server.url}/org/m", "--no-cache", "--metrics-file", str(file))
    network = {"model": NAME, "from": "network"}
    with running(command, *arguments) as (process, port, _):
        families = wait_for(port, lambda f: value(f, "coldstream_load_bytes_total", **network))
        assert value(families, "coldstream_loads_running") == 1
        expected = value(families, "coldstream_load_expected_bytes")
        assert expected
        assert 0 < (value(families, "coldstream_load_progress_bytes") or 0) < expected
        assert value(families, "coldstream_connections")
        wait_for(port, lambda f: value(f, "coldstream_retries_total", cause="busy") == 2)
        before = scrape(port)
        assert not file.exists()
        stalled.release()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    assert "verified" in out
    labels = {"model": NAME, "outcome": "ok", "source": "https", "verified": "no"}
    assert read(file, "coldstream_loads_total", **labels) == 1
    assert read(file, "coldstream_retries_total", cause="busy") == 2
    weights = sum(len(content) for path, content in files.items() if path.endswith(".safetensors"))
    bytes_total = read(file, "coldstream_load_bytes_total", **network)
    assert bytes_total is not None
    assert value(before, "coldstream_load_bytes_total", **network) <= bytes_total <= weights  # type: ignore[operator]
    assert bytes_total >= expected
    assert read(file, "coldstream_loads_running") is None
    with pytest.raises(ConnectionRefusedError):
        scrape(port)
    command.run(*arguments)
    assert read(file, "coldstream_loads_total", **labels) == 2


def test_what_the_cache_gave_and_what_failed(command: Command, server: RangedServer, tmp_path: Path) -> None:
    """coldstream load, twice, and of a model that is not there; COLDSTREAM_METRICS_FILE"""
    file = tmp_path / "coldstream.prom"
    command.environ["COLDSTREAM_METRICS_FILE"] = str(file)
    uri = f"{server.url}/org/m"
    for _ in range(2):
        command.run("load", uri)
    command.run("load", f"{server.url}/org/other", code=10)
    assert read(file, "coldstream_cache_loads_total", result="miss") == 1
    assert read(file, "coldstream_cache_loads_total", result="hit") == 1
    assert read(file, "coldstream_load_failures_total", kind="not-found") == 1
    labels = {"model": "org/other", "outcome": "failed", "source": "https", "verified": "unknown"}
    assert read(file, "coldstream_loads_total", **labels) == 1
    command.environ["COLDSTREAM_RETRY_SECONDS"] = "1"
    server.add("status", r"model-00002", status=503, first=2, times=None)
    command.run("load", uri, "--no-cache", code=1)
    assert read(file, "coldstream_load_failures_total", kind="unavailable") == 1
    assert (read(file, "coldstream_retries_total", cause="busy") or 0) > 1, "of a load that failed, too"


def test_wrong_bytes_are_counted(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "coldstream.prom"
    command.run("upload", str(tmp_path / "m"), "--as", NAME)
    weights = min((tmp_path / "store").rglob("model-00001*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    command.run("load", NAME, "--metrics-file", str(file), code=13)
    assert read(file, "coldstream_verification_failures_total") == 1
    assert read(file, "coldstream_load_failures_total", kind="integrity") == 1


def test_a_load_that_is_cancelled(command: Command, server: RangedServer, tmp_path: Path) -> None:
    file = tmp_path / "coldstream.prom"
    server.add("stall", r"GET .*model-00002.*\.safetensors", first=2, at=1 << 20, times=None)
    with running(command, "load", f"{server.url}/org/m", "--no-cache", "--metrics-file", str(file)) as (
        process,
        port,
        _,
    ):
        wait_for(port, lambda f: value(f, "coldstream_load_progress_bytes"))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    labels = {"model": NAME, "outcome": "cancelled", "source": "https", "verified": "unknown"}
    assert read(file, "coldstream_loads_total", **labels) == 1
    assert (read(file, "coldstream_load_bytes_total", model=NAME, **{"from": "network"}) or 0) > 0


@pytest.mark.parametrize("verb", ["load", "serve"])
def test_a_port_that_is_taken_is_one_line(command: Command, verb: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        out, err = command.run(verb, str(tmp_path / "m"), "--metrics-port", port, code=2)
    assert not out
    first, hint = err.splitlines()
    assert first == f"error: the metrics' port {port} on 127.0.0.1 is in use"
    assert hint.startswith("hint:")


def test_what_else_makes_no_sense(command: Command, tmp_path: Path) -> None:
    model = str(tmp_path / "m")
    (tmp_path / "apt.prom").write_text("# TYPE apt_upgrades gauge\napt_upgrades 3\n")
    for arguments, message in (
        (("--metrics-file", "metrics.txt"), "does not end in .prom"),
        (("--metrics-file", "nowhere/c.prom"), "is in a folder that does not exist"),
        (("--metrics-file", "apt.prom"), "holds apt_upgrades, which does not belong to coldstream"),
        (("--metrics-host", "127.0.0.1"), "needs a port"),
        (("--metrics-port", "65536"), "is not a whole number from 0 to 65535"),
    ):
        _, err = command.run("load", model, *arguments, code=2)
        assert message in err.splitlines()[0]
    port = str(free_port())
    fake_vllm(tmp_path / "env")
    vllm = str(tmp_path / "env/bin/vllm")
    _, err = command.run("serve", model, "--vllm", vllm, "--metrics-port", port, "--", "--port", port, code=2)
    assert err.splitlines()[-2].endswith(f"--metrics-port {port} is the port of vLLM itself")


def test_a_file_that_cannot_be_written_fails_no_load(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "metrics/coldstream.prom"
    file.parent.mkdir()
    file.write_text("coldstream_loads_total{")
    _, err = command.run("load", str(tmp_path / "m"), "--metrics-file", str(file))
    assert err.splitlines() == [f"warning: the metrics' file {file} is damaged; its counts start over"]


@contextmanager
def served(command: Command, *arguments: str, vllm: Path | None = None) -> Iterator[tuple[int, int]]:
    """`coldstream serve` around a `vllm` that starts at once: the metrics' port and vLLM's, once it answers."""
    api = free_port()
    program = vllm or fake_vllm(command.cwd / "env")
    flags = ("serve", NAME, "--vllm", str(program), *arguments)
    with running(command, *flags, vllm=("--", "--port", str(api), "--host", "127.0.0.1")) as (process, port, said):
        wait_for(port, lambda f: value(f, "coldstream_starts_total", model=NAME, outcome="ok"))
        yield port, api
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "".join(said)


def test_a_start_is_scraped_as_long_as_vllm_runs(command: Command, tmp_path: Path) -> None:
    """coldstream serve org/m --metrics-port 0 --metrics-file FILE, twice on one node"""
    file = tmp_path / "coldstream.prom"
    command.run("upload", str(tmp_path / "m"), "--as", NAME)
    for number, state in enumerate(("none", "local"), start=1):
        with served(command, "--metrics-file", str(file)) as (port, _):
            families = wait_for(port, lambda f: value(f, "coldstream_loads_running") == 0)
            ok = {"model": NAME, "outcome": "ok", "source": "folder", "verified": "yes"}
            assert value(families, "coldstream_loads_total", **ok) == 1
            assert value(families, "coldstream_bundle_restores_total", result=state) == 1
            assert value(families, "coldstream_last_start_seconds", model=NAME)
            assert value(families, "coldstream_first_token_seconds_count", model=NAME) == 1
            assert value(families, "coldstream_start_phase_seconds_count", phase="resolve") == 1
            assert value(families, "coldstream_start_span_seconds_count", span="manifest") == 1
            until = time.monotonic() + 30
            while not file.exists() or read(file, "coldstream_starts_total", model=NAME, outcome="ok") != number:
                assert time.monotonic() < until, "it is written as soon as vLLM answers: the machine may go"
                time.sleep(0.05)
            published = {"result": "published" if number == 1 else "kept"}
            wait_for(port, lambda f, p=published: value(f, "coldstream_bundle_publishes_total", **p))  # type: ignore[misc]
        assert read(file, "coldstream_starts_total", model=NAME, outcome="ok") == number
        assert read(file, "coldstream_loads_total", **ok) == number
        assert read(file, "coldstream_bundle_publishes_total", **published) == 1
        with pytest.raises(ConnectionRefusedError):
            scrape(port)


def test_a_start_that_fails(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "coldstream.prom"
    command.run("upload", str(tmp_path / "m"), "--as", NAME)
    vllm = fake_vllm(tmp_path / "env")
    vllm.write_text("#!/bin/sh\nexit 3\n")
    command.process(
        "serve", NAME, "--vllm", str(vllm), "--metrics-file", str(file), "--", "--port", str(free_port()), code=3
    )
    assert read(file, "coldstream_starts_total", model=NAME, outcome="failed") == 1
    assert read(file, "coldstream_start_failures_total", phase="api import") == 1
    command.run(
        "serve",
        "org/other",
        "--vllm",
        str(vllm),
        "--metrics-file",
        str(file),
        "--",
        "--port",
        str(free_port()),
        code=10,
    )
    assert read(file, "coldstream_starts_total", model="org/other", outcome="failed") == 1
    assert read(file, "coldstream_start_failures_total", phase="resolve") == 1
    assert read(file, "coldstream_load_failures_total", kind="not-found") == 1


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    real.promtool("check", "config", "--lint-fatal", "--lint=all", str(MONITORING / "prometheus.yml"))
    real.promtool("check", "rules", "--lint-fatal", "--lint=all", str(RULES))
    real.promtool("test", "rules", str(ROOT / "tests/monitoring/alerts_test.yml"))


def test_every_alert_is_tested() -> None:
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    tests = yaml.safe_load((ROOT / "tests/monitoring/alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {(case["alertname"], "exp_alerts" in case) for case in cases} == {
        (alert, fires) for alert in alerts for fires in (True, False)
    }


def expressions() -> list[str]:
    """Those of the dashboard, as Grafana would send them."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [text.replace("$__rate_interval", "1m").replace("$model", ".*") for text in found]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    names = {metric.name for metric in METRICS}
    for expression in expressions():
        for name in re.findall(r"coldstream_\w+", expression):
            assert name in names or re.sub(r"_(bucket|sum|count)$", "", name) in names, name
    assert len(expressions()) > 30


def test_the_dashboard_asks_vllm_for_what_it_has() -> None:
    sources = [*ROOT.glob(".venv-vllm/lib/python*/site-packages/vllm/v1/metrics/loggers.py")]
    if not sources:
        pytest.skip("vLLM's CPU build is not installed (make test)")
    (source,) = sources
    names = set(re.findall(r"vllm:\w+", " ".join(expressions())))
    assert len(names) >= 5
    for name in names:
        # Its client adds the endings.
        assert f'"{re.sub("_(bucket|total)$", "", name)}"' in source.read_text(), name


def test_the_real_prometheus_reads_it_all(command: Command, tmp_path: Path) -> None:
    """A start is scraped, queried, shown and judged; promtool takes what is served and what is left."""
    real.require()
    file = tmp_path / "coldstream.prom"
    command.run("upload", str(tmp_path / "m"), "--as", NAME)
    with served(command, "--metrics-file", str(file)) as (port, _):
        families = wait_for(port, lambda f: value(f, "coldstream_loads_running") == 0)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SCRAPE_SECONDS)
        connection.request("GET", "/metrics")
        said = real.promtool("check", "metrics", stdin=connection.getresponse().read().decode())
        connection.close()
        assert said.strip() == ""
        with real.prometheus({"coldstream": f"127.0.0.1:{port}"}, rules=RULES) as server:
            server.wait_for('up{job="coldstream"}', 1)
            for name, labels in (
                ("coldstream_loads_total", {"model": NAME, "outcome": "ok", "source": "folder", "verified": "yes"}),
                ("coldstream_load_bytes_total", {"model": NAME, "from": "disk"}),
                ("coldstream_last_start_seconds", {"model": NAME}),
                ("coldstream_start_seconds_count", {"model": NAME}),
                ("coldstream_start_phase_seconds_sum", {"phase": "resolve"}),
                ("coldstream_requests_total", {}),
            ):
                selector = name + "{" + ",".join(f'{label}="{text}"' for label, text in labels.items()) + "}"
                assert server.value(selector) == value(families, name, **labels), selector
            for expression in expressions():
                server.query(expression)
            types = server.api("metadata")
            for metric in METRICS:
                if metric.name in types:
                    assert types[metric.name] == [{"type": metric.kind, "help": metric.help, "unit": ""}]
            assert sum(metric.name in types for metric in METRICS) > 25
            rules = [rule for group in server.api("rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
            assert server.value("coldstream:load_failures:1h > 0") is None
    assert real.promtool("check", "metrics", stdin=file.read_text()).strip() == ""


def test_alerts_fire_in_the_real_prometheus(command: Command, server: RangedServer, tmp_path: Path) -> None:
    """A file as node exporter would serve it: a load that failed, a month over its budget, and nothing else fires."""
    real.require()
    file = tmp_path / "coldstream.prom"
    command.run("load", f"{server.url}/org/other", "--metrics-file", str(file), code=10)
    cost_file(file, projected=120.0, budget=100.0)
    endpoint = ScrapeEndpoint("127.0.0.1", 0, file.read_bytes)
    try:
        with real.prometheus({"node": f"127.0.0.1:{endpoint.port}"}, rules=RULES) as prometheus:
            firing = 'count(ALERTS{alertname="%s", alertstate="firing"})'
            prometheus.wait_for(firing % "ColdstreamLoadFailed", 1)
            prometheus.wait_for(firing % "ColdstreamMonthOverBudget", 1)
            names = {sample["metric"]["alertname"] for sample in prometheus.query("ALERTS")}
    finally:
        endpoint.stop()
    assert names == {"ColdstreamLoadFailed", "ColdstreamMonthOverBudget"}
