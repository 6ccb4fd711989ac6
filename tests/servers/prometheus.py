"""The real Prometheus on loopback, with a port from the kernel, and promtool. It ends with its context or parent."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_LISTENING = re.compile(r"Listening on.*address=(127\.0\.0\.1:[0-9]+)")
_START_SECONDS = 60.0
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Prometheus:
    """A running server.

    Attributes:
        url: `http://host:port`.
    """

    url: str

    def api(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers; its errors raise."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=_ANSWER_SECONDS) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression, now."""
        data = self.api("query", query=expression)
        found: list[dict[str, Any]] = data["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The value of an expression that has one sample; None while it has none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def wait_for(self, expression: str, value: float, seconds: float = 30.0) -> None:
        """Waits until an expression has a value."""
        until = time.monotonic() + seconds
        while (found := self.value(expression)) != value:
            assert time.monotonic() < until, f"{expression} is {found}, not {value}"
            time.sleep(0.1)


def require(program: str = "prometheus") -> str:
    """The path of `prometheus` or `promtool`; skips the calling test without it."""
    path = shutil.which(program)
    if path is None:
        import pytest

        pytest.skip(f"{program} is not installed (apt-get install prometheus)")
    return path


def promtool(*arguments: str, stdin: str = "", code: int = 0) -> str:
    """Runs it; what it says, when it ends with `code`."""
    done = subprocess.run(
        [require("promtool"), *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


@contextmanager
def prometheus(targets: Mapping[str, str], *, rules: Path | None = None) -> Iterator[Prometheus]:
    """Scrapes some targets four times a second.

    Args:
        targets: Job to `host:port`.
        rules: A file of rules.
    """
    program = require()
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        folder = Path(name)
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
            "rule_files": [str(rules)] if rules else [],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # one system call, which takes no lock
        )
        try:
            yield Prometheus(f"http://{_address(process)}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stderr is not None
            process.stderr.close()


def _address(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it is ready; what it says later is read and thrown away."""
    assert process.stderr is not None
    lines: list[str] = []
    address = None
    timer = threading.Timer(_START_SECONDS, process.kill)
    timer.start()
    try:
        for line in process.stderr:
            lines.append(line)
            if match := _LISTENING.search(line):
                address = match[1]
            if "Server is ready to receive web requests" in line and address:
                break
        else:
            raise RuntimeError(f"prometheus did not start: {''.join(lines)[-2000:]}")
    finally:
        timer.cancel()
    rest = process.stderr
    threading.Thread(target=lambda: [None for _ in _lines(rest)], daemon=True).start()
    return address


def _lines(stream: Any) -> Iterator[str]:
    try:
        yield from stream
    except (OSError, ValueError):
        return  # it was closed during the request


def _end_with_parent() -> None:
    # Linux: prctl(PR_SET_PDEATHSIG, SIGTERM), so that a killed test leaves no server behind.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
