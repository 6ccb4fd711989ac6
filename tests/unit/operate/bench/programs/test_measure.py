"""`measure.py`, on real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from coldstream.operate.bench.runner import PROGRAMS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_killed_descendants_are_waited_for() -> None:
    # Zombies stay in the tree until they are waited for: without that, it would take ten seconds.
    code = textwrap.dedent(
        """
        import subprocess, sys
        sys.path.insert(0, sys.argv[1])
        import measure
        for _ in range(3):
            subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"])
        measure.end_descendants(reap=True)
        print(measure.descendants())
        """
    )
    command = [sys.executable, "-S", "-c", code, str(PROGRAMS)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_runs_when_the_parent_has_exited(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as parent:
        pass
    ran = tmp_path / "ran"
    options = json.dumps({"pss": False, "interval": 0.05, "timeout": 10, "parent": parent.pid})
    command = [sys.executable, str(PROGRAMS / "measure.py"), options, "touch", str(ran)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert not ran.exists()
