"""Runs the installed command as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers.stores import S3Server


class Command:
    """`coldstream` with the settings of one bucket and one Hub.

    Attributes:
        environ: What it runs with.
    """

    def __init__(self, server: S3Server | None, bucket: str, *, hub: str = "", cwd: Path) -> None:
        self.environ = {**os.environ, "COLDSTREAM_RETRY_SECONDS": "20", "NO_COLOR": "1"}
        if server:
            self.environ |= server.environ(bucket)
        if hub:
            self.environ["HF_ENDPOINT"] = hub
        self.cwd = cwd

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begins; the caller waits."""
        return subprocess.Popen(
            [sys.executable, "-m", "coldstream", *arguments],
            env=self.environ,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Runs to the end and returns stdout and stderr; the exit code must be `code`."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Runs with --json and returns the document."""
        return json.loads(self.run(*arguments, "--json", code=code)[0])

    def states(self) -> dict[str, str]:
        """Model to state, by `coldstream list`."""
        return {model["name"]: model["state"] for model in self.json("list")["models"]}
