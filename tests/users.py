"""Code that runs as another user, as the container of a pod does."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence

import pytest

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def run_as(uid: int, act: Callable[[], object], *, gid: int = 0, groups: Sequence[int] = ()) -> None:
    """Runs a function in a fork that this user owns; fails with the traceback of the fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            act()
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writing, text.encode())
            os._exit(bool(text))
    os.close(writing)
    with open(reading) as output:
        text = output.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
