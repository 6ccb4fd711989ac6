"""Runs one start of vLLM up to its first token, then ends the server.

Reads {"command", "arguments", "verify"} as JSON from BENCH_OPTIONS: the program that runs `coldstream serve … --json`,
and its arguments, passed on by standard input because they may hold a token. Prints the time to the first token, the
CPU time of the whole tree up to then, the phases, and with `verify` a digest of a completion.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

import urllib3

from coldstream.operate.bench.programs.measure import descendants
from coldstream.operate.demo_bucket import post_json

_END_SECONDS = 60.0


def main() -> None:
    """Runs the start that BENCH_OPTIONS describes."""
    options = json.loads(os.environ.pop("BENCH_OPTIONS"))
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(options["command"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(json.dumps(options["arguments"]).encode())
            document = _read_document(process.stdout)
            seconds = time.perf_counter() - began
            cpu_seconds = _tree_cpu_seconds()
            digest = _completion_digest(document["url"]) if document and options.get("verify") else None
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not document:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            sys.exit(1)
    start = {name: document.get(name) for name in ("first_token_seconds", "seconds", "phases", "stream_stop_seconds")}
    print(json.dumps({"load_seconds": seconds, "cpu_seconds": cpu_seconds, "start": start, "digest": digest}))


def _read_document(output: IO[bytes]) -> Any:
    """The document that `coldstream serve --json` prints after the first token; None if it exited before."""
    text = b""
    for line in output:
        text += line
        if line == b"}\n":
            return json.loads(text)
    return None


def _completion_digest(url: str) -> str | None:
    with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError, KeyError, IndexError, TypeError):
        body = {"prompt": "The river", "max_tokens": 8, "temperature": 0}
        text = post_json(f"{url}/v1/completions", body)["choices"][0]["text"]
        return hashlib.sha256(text.encode()).hexdigest()
    return None


def _tree_cpu_seconds() -> float:
    """CPU seconds of all descendants, including those that have exited and were waited for."""
    ticks = 0
    for pid in descendants():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            # utime, stime, cutime and cstime are fields 14 to 17 in proc_pid_stat(5); the split drops the first two.
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
