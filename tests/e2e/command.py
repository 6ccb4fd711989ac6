"""Runs the command as a user would: in a process of its own, or in this one, which spares an interpreter's start."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from coldstream.cli import main
from tests.servers.stores import S3Server


class Command:
    """`coldstream` with the settings of one bucket and one Hub.

    Attributes:
        environ: What it runs with.
        cwd: Where it runs.
    """

    def __init__(self, server: S3Server | None, bucket: str, *, hub: str = "", cwd: Path) -> None:
        self.environ = {**os.environ, "COLDSTREAM_RETRY_SECONDS": "20", "NO_COLOR": "1"}
        if server:
            self.environ |= server.environ(bucket)
        if hub:
            self.environ["HF_ENDPOINT"] = hub
        self.cwd = cwd

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begins a process; the caller waits."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell's background jobs ignore Ctrl-C and hand that down; a command on a terminal does not.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(
            [sys.executable, "-m", "coldstream", *arguments],
            env=self.environ,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def process(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Runs a process to its end and returns stdout and stderr; the exit code must be `code`."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=300)
        return _checked(arguments, process.returncode, code, out, err)

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """The same in this process."""
        ended, out, err = self.ended(*arguments)
        return _checked(arguments, ended, code, out, err)

    def ended(self, *arguments: str) -> tuple[object, str, str]:
        """The same, with whatever exit code it has: that, stdout and stderr."""
        out, err = io.StringIO(), io.StringIO()
        ended: object = None
        with self._entered(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(arguments)
            except SystemExit as exc:
                ended = exc.code
        return ended, out.getvalue(), err.getvalue()

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Runs with --json and returns the document."""
        return json.loads(self.run(*arguments, "--json", code=code)[0])

    def states(self) -> dict[str, str]:
        """Model to state, by `coldstream list`."""
        return {model["name"]: model["state"] for model in self.json("list")["models"]}

    @contextlib.contextmanager
    def _entered(self) -> Any:
        """The environment, directory and standard input of a new process, without a Hub token."""
        on_terminate, folder = signal.getsignal(signal.SIGTERM), Path.cwd()
        os.chdir(self.cwd)
        try:
            with (
                open(os.devnull) as nothing,
                mock.patch.dict(os.environ, self.environ, clear=True),
                mock.patch("sys.stdin", nothing),
                mock.patch("huggingface_hub.constants.HF_TOKEN_PATH", str(self.cwd / "no-token")),
            ):
                yield
        finally:
            os.chdir(folder)
            signal.signal(signal.SIGTERM, on_terminate)


def _checked(arguments: tuple[str, ...], ended: object, code: int, out: str, err: str) -> tuple[str, str]:
    assert ended == code, f"{arguments}: exit {ended}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err
