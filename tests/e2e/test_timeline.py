"""`coldstream timeline`, and the records that `coldstream serve` leaves, around a `vllm` that starts at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coldstream.node.http_endpoint import free_port
from coldstream.telemetry.timeline.start_record import parse_ready_line
from coldstream.telemetry.timeline.timeline_store import Timelines
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_lines, fake_vllm
from tests.terminal import run_on_terminal, screen
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import BEGAN, finished, recorded, streamed


@pytest.fixture
def command(tmp_path: Path) -> Command:
    made = Command(None, "", cwd=tmp_path)
    made.environ |= {"COLDSTREAM_STORE": str(tmp_path / "store"), "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    return made


@pytest.fixture
def kept(command: Command) -> Timelines:
    """Two starts of this machine."""
    timelines = Timelines(Path(command.environ["COLDSTREAM_CACHE_DIR"]))
    later = BEGAN + timedelta(minutes=1)
    timelines.keep(streamed())
    timelines.keep(finished(recorded(logs.CUDA_AOT, ready=70.0), model="org/<b>", loader="runai", began_at=later))
    return timelines


def served(
    command: Command, *arguments: str, vllm: tuple[str, ...] = (), flags: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Starts, waits for the document, and ends it."""
    program = str(command.cwd / "env/bin/vllm")
    if flags is None:
        flags = ("--port", str(free_port()), "--host", "127.0.0.1")
    process = command.start("serve", "org/m", "--vllm", program, "--json", *arguments, "--", *flags, *vllm)
    assert process.stdout is not None
    text = ""
    with process:
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.fixture
def model(command: Command) -> Command:
    folder = command.cwd / "m"
    folder.mkdir()
    for path, content in sharded_checkpoint(shards=1, layers=1).items():
        (folder / path).write_bytes(content)
    command.run("upload", str(folder), "--as", "org/m")
    fake_vllm(command.cwd / "env")
    return command


def test_a_start_is_recorded_and_shown(model: Command) -> None:
    """coldstream serve org/m --json; coldstream timeline"""
    document = served(model, vllm=("--api-key", "sesame-open"))
    assert document["first_token_seconds"] >= document["seconds"]
    assert [phase["name"] for phase in document["phases"]][:2] == ["command", "resolve"]
    assert document["stream"]["bytes"] > 0
    assert {"manifest", "connect", "stream"} <= {span["name"] for span in document["spans"]}
    assert document["named_share"] == 1.0
    assert [phase["name"] for phase in document["phases"]][-2:] == ["API ready", "first token"]
    path = Path(document["timeline"])
    assert path.parent == model.cwd / "cache/timelines"
    assert "sesame" not in path.read_text()
    (shown,) = model.json("timeline")["timelines"]
    assert shown["run"] == document["run"]
    assert shown == json.loads(path.read_text())
    out, _ = model.run("timeline")
    assert document["run"] in out
    assert "ready in" in out
    assert "bottleneck: " in out


def test_programs_read_a_line_of_json(model: Command) -> None:
    """coldstream serve org/m 2>log"""
    flags = ("--port", str(free_port()), "--host", "127.0.0.1")
    process = model.start("serve", "org/m", "--vllm", str(model.cwd / "env/bin/vllm"), "--", *flags)
    assert process.stderr is not None
    line = None
    with process:
        lines: list[str] = []
        while line is None and (text := process.stderr.readline()):
            lines.append(text)
            line = parse_ready_line(lines)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert line is not None, "".join(lines)
    assert line.url.startswith("http://127.0.0.1:")
    assert line.first_token_seconds is not None
    assert 0 < line.ready_seconds <= line.first_token_seconds
    assert line.phases == Timelines(model.cwd / "cache").find(line.run).phases
    assert any(text.startswith("ready in ") for text in lines), "people read the table above it"


def test_on_a_terminal_a_line_says_how_far_it_is(model: Command) -> None:
    """coldstream serve org/m, on a terminal"""
    arguments = [sys.executable, "-m", "coldstream", "serve", "org/m", "--vllm", str(model.cwd / "env/bin/vllm")]
    flags = ["--", "--port", str(free_port()), "--host", "127.0.0.1"]
    environ = {**model.environ, "TERM": "xterm", "COLUMNS": "80"}
    stopped = False

    def stop(pid: int, text: str) -> None:
        nonlocal stopped
        if not stopped and "bottleneck: " in text:
            stopped = True
            os.kill(pid, signal.SIGTERM)

    code, text = run_on_terminal([*arguments, *flags], cwd=model.cwd, environ=environ, on_text=stop)
    assert code == 0
    assert "resolve        " in text
    shown = screen(text)
    for line in fake_lines(until="Starting vLLM"):
        assert line in shown, "vLLM's lines are as it wrote them"
    (ready,) = [place for place, line in enumerate(shown) if line.startswith("ready in")]
    assert shown[ready - 1].startswith("  "), "below the timeline"
    assert not any("done   " in line for line in shown), "nothing is left of the line itself"


def test_no_token_is_asked_for(model: Command) -> None:
    """coldstream serve org/m --no-first-token"""
    document = served(model, "--no-first-token")
    assert document["first_token_seconds"] is None
    assert document["phases"][-1]["name"] == "API ready"


def test_a_record_that_cannot_be_written_fails_no_start(model: Command) -> None:
    folder = model.cwd / "cache/timelines"
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")
    document = served(model)
    assert document["timeline"] is None
    assert document["phases"]


def test_a_start_that_fails_is_recorded(model: Command) -> None:
    """coldstream serve org/m; coldstream timeline; coldstream timeline --list"""
    good = served(model)
    vllm = model.cwd / "env/bin/vllm"
    lines = "\n".join(f'echo "{line}"' for line in fake_lines(until="Initializing model took"))
    for end, code in (("exit 3", 3), ("kill -KILL $$", 137)):
        vllm.write_text(f"#!/bin/sh\n{lines}\n{end}\n")
        _, err = model.process("serve", "org/m", "--vllm", str(vllm), "--", "--port", str(free_port()), code=code)
        how = "ended by SIGKILL" if code == 137 else f"exit code {code}"
        *_, said, last = err.splitlines()
        killed = "possibly killed by the out-of-memory killer; see the kernel's log"
        own = "see vLLM's own messages for the reason"
        assert last == f"error: vLLM did not start; {killed if code == 137 else own}"
        assert said.startswith("vLLM failed after ")
        assert f"in weights: {how}   see: coldstream timeline 20" in said
        (shown,) = model.json("timeline")["timelines"]
        assert shown["outcome"] == "failed"
        assert shown["ended"]["exit_code"] == code
        assert shown["ended"]["signal"] == ("SIGKILL" if code == 137 else None)
        assert shown["ready_seconds"] is None
        assert shown["spans"][0]["name"] == "manifest"
        assert how in model.run("timeline")[0]
    runs = model.json("timeline", "--list")["runs"]
    assert [run["outcome"] for run in runs] == ["failed", "failed", "ok"]
    out, _ = model.run("timeline", "--list")
    assert out.count("failed in weights") == 2
    _, err = model.run("timeline", runs[0]["run"], good["run"], "--html", "x.html", code=2)
    assert "did not become ready (failed); charts compare successful starts" in err
    assert not (model.cwd / "x.html").exists()


def test_a_start_that_is_ended_by_the_user_is_recorded_as_such(model: Command) -> None:
    vllm = model.cwd / "env/bin/vllm"
    vllm.write_text("#!/bin/sh\necho at work\nexec sleep 60\n")
    process = model.start("serve", "org/m", "--vllm", str(vllm), "--", "--port", str(free_port()))
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "vLLM failed" not in err
    (shown,) = model.json("timeline")["timelines"]
    assert shown["outcome"] == "cancelled"
    assert shown["ended"]["signal"] == "SIGINT"


def test_a_start_that_dies_of_its_first_request_has_failed(model: Command) -> None:
    program = str(fake_vllm(model.cwd / "env", fault="dies"))
    flags = ("--port", str(free_port()), "--host", "127.0.0.1")
    out, err = model.process("serve", "org/m", "--vllm", program, "--", *flags, code=1)
    assert "ready in" not in out + err
    assert err.splitlines()[-1] == "error: RuntimeError: illegal instruction"
    (shown,) = model.json("timeline")["timelines"]
    assert shown["outcome"] == "failed"
    assert shown["ended"]["phase"] == "first token"
    assert shown["ended"]["reason"] == "RuntimeError: illegal instruction"
    assert "reason: RuntimeError: illegal instruction" in model.run("timeline")[0]


def test_a_start_that_swallows_sigterm_ends(model: Command) -> None:
    program = str(fake_vllm(model.cwd / "env", fault="swallows"))
    process = model.start("serve", "org/m", "--vllm", program, "--", "--port", str(free_port()))
    assert process.stdout is not None
    with process:
        assert "deaf\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "error:" not in err
    (shown,) = model.json("timeline")["timelines"]
    assert shown["outcome"] == "cancelled"


def vllm_below(process: subprocess.Popen[str]) -> int:
    """The process of the `vllm` that a `coldstream serve` runs."""
    below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in below if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_supervisor_ends_both_or_kills_one(number: signal.Signals, code: int, model: Command) -> None:
    """What systemd does at first to every process of the unit, and the out-of-memory killer to one."""
    program = str(model.cwd / "env/bin/vllm")
    flags = ("--host", "127.0.0.1", "--port", str(free_port()))
    process = model.start("serve", "org/m", "--vllm", program, "--json", "--", *flags)
    assert process.stdout is not None
    with process:
        assert "}\n" in iter(process.stdout.readline, "")
        vllm = vllm_below(process)
        process.send_signal(number)
        if number == signal.SIGTERM:
            with suppress(ProcessLookupError):
                os.kill(vllm, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "error:" not in err
    deadline = time.monotonic() + 30
    while (command_line := Path(f"/proc/{vllm}/cmdline")).exists() and command_line.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_vllm_s_own_configuration_file_is_known(model: Command) -> None:
    """coldstream serve org/m -- --config vllm.yaml"""
    port = free_port()
    (model.cwd / "vllm.yaml").write_text(f"port: {port}\nhost: 127.0.0.1\nserved-model-name: mine\n")
    document = served(model, flags=(), vllm=("--config", "vllm.yaml"))
    assert document["url"] == f"http://127.0.0.1:{port}"
    assert document["first_token_seconds"], "asked for by the name in the file"


def test_a_port_in_use_does_not_count_as_a_start(model: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        program = str(model.cwd / "env/bin/vllm")
        out, err = model.process("serve", "org/m", "--vllm", program, "--", "--port", str(port), code=1)
    assert out == ""
    assert f"port {port}: another server does (process {os.getpid()}, " in err
    model.run("timeline", code=10)


def test_vllm_s_help_does_not_count_as_a_failed_start(model: Command) -> None:
    vllm = model.cwd / "env/bin/vllm"
    vllm.write_text("#!/bin/sh\nexit 0\n")
    model.process("serve", "org/m", "--vllm", str(vllm), "--", "--help", "--port", str(free_port()))
    model.run("timeline", code=10)
    _, err = model.process("serve", "org/m", "--vllm", str(vllm), "--", "--port", str(free_port()), code=1)
    assert "error: vLLM did not start" in err


def test_starts_are_listed(command: Command, kept: Timelines) -> None:
    """coldstream timeline --list"""
    out, _ = command.run("timeline", "--list")
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", *kept.runs()]
    assert "110.5 s" in out
    assert "restored" in out
    document = command.json("timeline", "--list")
    assert [run["run"] for run in document["runs"]] == kept.runs()
    assert [run["compile_caches"] for run in document["runs"]] == ["loaded", "unknown"]


def test_there_may_be_none(command: Command) -> None:
    out, _ = command.run("timeline", "--list")
    assert "no start is recorded" in out
    _, err = command.run("timeline", code=10)
    assert "no start is recorded" in err


def test_several_are_drawn_side_by_side(command: Command, kept: Timelines) -> None:
    """coldstream timeline RUN RUN --html FILE --png FILE"""
    names = kept.runs()
    out, err = command.run("timeline", *names, "--html", "starts.html", "--png", "starts.png")
    assert out == ""
    assert "wrote starts.html" in err
    page = (command.cwd / "starts.html").read_text()
    assert "How org/&lt;b&gt;, Qwen/Qwen3-8B started" in page
    assert (command.cwd / "starts.png").read_bytes().startswith(b"\x89PNG")
    out, _ = command.run("timeline", *names)
    assert out.count("ready in") == 2


def test_invalid_arguments(command: Command, kept: Timelines) -> None:
    _, err = command.run("timeline", "2026", code=2)
    assert "is ambiguous" in err
    _, err = command.run("timeline", "1999", code=10)
    assert "coldstream timeline --list" in err
    _, err = command.run("timeline", "--list", "2026", code=2)
    assert "--list" in err
    _, err = command.run("timeline", *[kept.runs()[0]] * 13, "--png", "x.png", code=2)
    assert "too many" in err
    (command.cwd / "broken.json").write_text("{}")
    _, err = command.run("timeline", "broken.json", code=13)
    assert "is not a valid timeline" in err
    if os.geteuid():
        _, err = command.run("timeline", "--png", "/x.png", code=1)
        assert "cannot write" in err


def test_without_matplotlib(command: Command, kept: Timelines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, err = command.run("timeline", "--html", "x.html", code=2)
    assert "pip install 'matplotlib>=3.8'" in err
    assert not (command.cwd / "x.html").exists()
    assert "ready in" in command.run("timeline")[0]
