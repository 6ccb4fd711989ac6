"""One start of vLLM, from the command to its first token; then it is ended.

Takes {"command", "arguments", "verify"} as JSON from BENCH_OPTIONS: what runs `coldstream serve … --json`, and its
arguments, which it reads as JSON from its standard input: they may hold a token. Prints one line of JSON: seconds
until the first token and until it answered, the CPU time of the whole tree up to then, the phases; with `verify` a
digest of what the model says.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

_END_SECONDS = 60.0
_ASK_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Runs it."""
    options = json.loads(os.environ.pop("BENCH_OPTIONS"))
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(options["command"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(json.dumps(options["arguments"]).encode())
            text = _document(process)
            seconds = time.perf_counter() - began
            spent = _tree_seconds(os.getpid())
            said = _says(json.loads(text)) if text and options.get("verify") else None
        finally:
            _end(process)
        if not text:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            sys.exit(f"error: vLLM did not start: {_reason(log)}")
    found = json.loads(text)
    kept = {name: found.get(name) for name in ("first_token_seconds", "seconds", "phases", "stream_stop_seconds")}
    result = {"load_seconds": seconds, "cpu_seconds": spent, "start": kept, "digest": said}
    print(json.dumps(result))


def _document(process: subprocess.Popen[bytes]) -> bytes:
    """What `coldstream serve --json` prints once a token was there; nothing when it ended before."""
    assert process.stdout is not None
    text = b""
    for line in process.stdout:
        text += line
        if line == b"}\n":
            return text
    return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(log: Any) -> str:
    """The line of its output that tells the most."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line.lower() or "Error:" in line]
    said: str = (told or lines or ["it said nothing"])[-1]
    return said[-300:].removeprefix("error: ")


def _says(found: dict[str, Any]) -> str | None:
    """A digest of a few tokens; None of a model that completes no text."""
    try:
        (model,) = _ask(found["url"], "/v1/models", None)["data"][:1]
        body = {"model": model["id"], "prompt": "The river", "max_tokens": 8, "temperature": 0}
        answer = _ask(found["url"], "/v1/completions", body)
        return hashlib.sha256(answer["choices"][0]["text"].encode()).hexdigest()
    except (OSError, ValueError, KeyError, IndexError, TypeError, http.client.HTTPException):
        return None


def _ask(url: str, path: str, body: Any) -> Any:
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=_ASK_SECONDS)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}")
        return json.loads(text)
    finally:
        connection.close()


def _tree_seconds(pid: int) -> float:
    """CPU seconds of a process's descendants, those that have ended and were waited for included."""
    total, todo = 0.0, _children(pid)
    while todo:
        child = todo.pop()
        try:
            with open(f"/proc/{child}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        # utime, stime, cutime, cstime are the fields 14 to 17 of proc_pid_stat(5), of which the first two are gone.
        total += sum(map(int, fields[11:15])) / _TICKS
        todo += _children(child)
    return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        return found
    return found


if __name__ == "__main__":
    main()
