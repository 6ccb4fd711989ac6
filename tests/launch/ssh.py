"""The SSH server of a machine: accepts every login, and runs commands inside the machine's disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh

_BLOCK = 65536
# A process in the background may hold the output of the command that started it.
_LAST_OUTPUT_SECONDS = 1.0


class _Everybody(asyncssh.SSHServer):
    """No namespace but ours can reach it."""

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_requested(self, *_: object) -> bool:
        return True


class SshServer:
    """Serves at port 22 of every address of its network."""

    def __init__(self, prefix: Sequence[str], log: Path) -> None:
        """Prepares.

        Args:
            prefix: What a shell is started with.
            log: Where commands are written down.
        """
        self._prefix, self._log = tuple(prefix), log.open("a", buffering=1)
        self._count = 0

    async def serve(self) -> None:
        """Until it is cancelled."""
        await asyncssh.create_server(
            _Everybody,
            "0.0.0.0",
            22,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            process_factory=self._handle,
            encoding=None,
            line_editor=False,
        )
        await asyncio.Event().wait()

    async def _handle(self, asked: asyncssh.SSHServerProcess[bytes]) -> None:
        self._count += 1
        number, command = self._count, asked.command
        self._log.write(f"{time.time():.1f} [{number}] {command!r}\n")
        shell = ("-c", f"cd ~; {command}") if command else ("-l",)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._prefix, "/bin/bash", *shell, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        feeding = asyncio.create_task(_feed(asked.stdin, process.stdin))
        reading = [
            asyncio.create_task(_pump(process.stdout, asked.stdout)),
            asyncio.create_task(_pump(process.stderr, asked.stderr)),
        ]
        code = await process.wait()
        await asyncio.wait(reading, timeout=_LAST_OUTPUT_SECONDS)
        for task in (feeding, *reading):
            task.cancel()
        self._log.write(f"{time.time():.1f} [{number}] exit {code}\n")
        with suppress(OSError, asyncssh.Error):
            asked.exit(code if code >= 0 else 128 - code)


async def _feed(source: Any, target: Any) -> None:
    await _pump(source, target)
    with suppress(OSError):
        target.close()


async def _pump(source: Any, target: Any) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(_BLOCK):
            target.write(data)
            await target.drain()
