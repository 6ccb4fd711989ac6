"""What vLLM learns about the classes of models, for a runtime: no node then imports vLLM once more to learn it.

vLLM inspects a model's class in another process, and keeps the result below VLLM_CACHE_ROOT, with a hash of the class's
source: `_LazyRegisteredModel` in vllm/model_executor/models/registry.py. `entry` copies it there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from coldstream.engines.vllm.entry import MODEL_FACTS

_SECONDS_MAX = 600
# A class that cannot be imported on this machine is left out.
_INSPECT = """
from vllm.model_executor.models import registry
registry._run_in_subprocess = lambda inspect: inspect()
for model in registry.ModelRegistry.models.values():
    try:
        model.inspect_model_cls()
    except BaseException:
        pass
"""


def add_model_facts(root: Path) -> int:
    """Adds them to a relocated environment; returns of how many classes: 0 if vLLM keeps none, or takes too long."""
    with tempfile.TemporaryDirectory() as home:
        environ = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "USER": "coldstream", "VLLM_CACHE_ROOT": home}
        environ |= {"LD_LIBRARY_PATH": f"{root}/lib:{root}/lib/system", "VLLM_NO_USAGE_STATS": "1"}
        program = (root / "bin/python3", "-I", "-B", "-c", _INSPECT)
        try:
            subprocess.run(program, env=environ, cwd=home, capture_output=True, check=False, timeout=_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            return 0  # part of them would give the same environment another digest each time
        paths = list(Path(home, "modelinfos").glob("*.json"))
        for path in paths:
            path.chmod(0o644)
        if paths:
            shutil.copytree(Path(home, "modelinfos"), root / MODEL_FACTS)
        return len(paths)
