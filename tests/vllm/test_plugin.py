"""The plugin is there in each of vLLM's processes, and costs those nothing that load no weights."""

from __future__ import annotations

import json
import subprocess

from tests.vllm.conftest import PYTHON, clean_environ

# A request of three tokens is too short for oneDNN to ask for AMX, which vLLM's attention then uses: 18 is the number
# of its state, XTILEDATA, and 0x1022 ARCH_GET_XCOMP_PERM.
_CODE = """
import ctypes, json, platform, sys
before = set(sys.modules)
import coldstream.vllm
coldstream.vllm.register()
coldstream.vllm.register()
light = sorted({name.partition(".")[0] for name in set(sys.modules) - before} & {"torch", "vllm", "numpy", "boto3"})
from vllm.plugins import load_general_plugins
load_general_plugins()
waits = "vllm.model_executor.model_loader" not in sys.modules
waiting = sum(type(finder).__module__ == "coldstream.vllm" for finder in sys.meta_path)
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
made = type(get_model_loader(LoadConfig(load_format="coldstream"))).__name__
left = sum(type(finder).__module__ == "coldstream.vllm" for finder in sys.meta_path)
coldstream.vllm.register()
allowed = ctypes.c_ulong()
if platform.machine() == "x86_64":
    ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(allowed))
amx = "amx_tile" in open("/proc/cpuinfo").read()
print("\\nFOUND", json.dumps([light, waits, waiting, made, left, amx == bool(allowed.value >> 18 & 1)]))
"""


def test_it_waits_until_weights_are_loaded() -> None:
    ended = subprocess.run(
        [str(PYTHON), "-c", _CODE], env=clean_environ(), capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.partition("\nFOUND ")[2])
    assert found == [[], True, 1, "ColdstreamLoader", 0, True]
