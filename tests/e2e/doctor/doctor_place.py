"""A model in a bucket, and `coldstream doctor` run on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstream.places.place import Store
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.servers.stores import S3Server

NAME = "org/m"

FILES = sharded_checkpoint(shards=2, layers=2, rows=128, columns=256)

Checks = dict[str, dict[str, Any]]


@dataclass
class Place:
    """A bucket with a model, and the command that looks at it."""

    command: Command
    store: Store

    def checks(self, *arguments: str, code: int = 0) -> Checks:
        found = self.command.json("doctor", NAME, "--quick", *arguments, code=code)
        assert found["failed"] == sum(check["state"] == "fail" for check in found["checks"])
        return {check["name"]: check for check in found["checks"]}

    def faults(self, *arguments: str) -> Checks:
        """Those that failed; the exit code is 1."""
        return {name: check for name, check in self.checks(*arguments, code=1).items() if check["state"] == "fail"}


def make_place(server: S3Server, folder: Path) -> Place:
    bucket = fresh_bucket(server)
    command = Command(server, bucket, cwd=folder)
    (folder / "bin").mkdir()
    command.environ |= {"COLDSTREAM_CACHE_DIR": str(folder / "cache"), "PATH": str(folder / "bin")}
    command.environ["COLDSTREAM_RETRY_SECONDS"] = "3"
    (folder / "m").mkdir()
    for path, content in FILES.items():
        (folder / "m" / path).write_bytes(content)
    command.run("upload", str(folder / "m"), "--as", NAME)
    return Place(command, quick_store(server.environ(bucket)))
