"""Processes with a network, mounts and process ids of their own. They end with their first one."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_CLONE_NEWNET = 0x40000000


def unshared(*argv: str, network: bool = True) -> list[str]:
    """The command that runs another one as the first process of new namespaces, which dies when it is killed."""
    flags = ["--mount", "--uts", "--pid", "--mount-proc", "--kill-child=SIGKILL"]
    return ["unshare", *(["--net"] if network else []), *flags, "--", *argv]


def be_first(main: Callable[[], None]) -> NoReturn:
    """Runs `main` in a child and reaps orphans, which the first process of a namespace inherits."""
    pid = os.fork()
    if not pid:
        try:
            main()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    while True:
        ended, status = os.wait()
        if ended == pid:
            sys.exit(os.waitstatus_to_exitcode(status))


def first_of(unshare_pid: int) -> int:
    """The first process in the namespaces, as it is called outside of them."""
    return int(Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children").read_text().split()[0])


def run(*argv: str | Path, text: str | None = None) -> str:
    """A small command's output.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    done = subprocess.run([str(word) for word in argv], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """This thread's new sockets are in another process's network, for the length of the block."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    own, other = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        enter(other)
        try:
            yield
        finally:
            enter(own)
    finally:
        os.close(own)
        os.close(other)
