"""The plugin is there in each of vLLM's processes, and costs those nothing that load no weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.checkpoints import sharded_checkpoint
from tests.vllm.conftest import PYTHON, clean_environ

# A request of three tokens is too short for oneDNN to ask for AMX, which vLLM's attention then uses: 18 is the number
# of its state, XTILEDATA, and 0x1022 ARCH_GET_XCOMP_PERM.
_CODE = """
import ctypes, json, platform, sys
before = set(sys.modules)
import coldstream.engines.vllm
coldstream.engines.vllm.register()
coldstream.engines.vllm.register()
light = sorted({name.partition(".")[0] for name in set(sys.modules) - before} & {"torch", "vllm", "numpy", "boto3"})
from vllm.plugins import load_general_plugins
load_general_plugins()
waits = "vllm.model_executor.model_loader" not in sys.modules
def waiting_for():
    finders = (finder for finder in sys.meta_path if type(finder).__module__ == "coldstream.node.import_hook")
    return sorted(finder.name for finder in finders)
waiting = waiting_for()
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
made = type(get_model_loader(LoadConfig(load_format="coldstream"))).__name__
theirs = isinstance(get_model_loader(LoadConfig()), DefaultModelLoader)

class Model:
    def load_weights(self, weights): return {name for name, _ in weights}
    def named_parameters(self): return []
    def named_modules(self): return []

class Config:
    revision = quantization = None
    def __init__(self, model): self.model = model
    def __getattr__(self, name): return None

def fault(folder):
    try:
        get_model_loader(LoadConfig()).load_weights(Model(), Config(folder))
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"

from vllm.config import VllmConfig, set_current_vllm_config
prepared = coldstream.prepare(sys.argv[1])
with set_current_vllm_config(VllmConfig()):
    faults = [fault(prepared), fault(sys.argv[2]), fault(sys.argv[1])]
left = waiting_for()
coldstream.engines.vllm.register()
allowed = ctypes.c_ulong()
if platform.machine() == "x86_64":
    ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(allowed))
amx = "amx_tile" in open("/proc/cpuinfo").read()
print("\\nFOUND", json.dumps([light, waits, waiting, made, theirs, left, amx == bool(allowed.value >> 18 & 1), faults]))
"""


def test_it_waits_until_weights_are_loaded(tmp_path: Path) -> None:
    """The other load formats stay vLLM's own, but for a folder of ours they name the format that it needs."""
    model, broken = tmp_path / "m", tmp_path / "broken"
    for folder in (model, broken):
        folder.mkdir()
        for path, content in sharded_checkpoint(shards=1, layers=1).items():
            (folder / path).write_bytes(content)
    (shard,) = broken.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    ended = subprocess.run(
        [str(PYTHON), "-c", _CODE, str(model), str(broken)],
        env=clean_environ(COLDSTREAM_CACHE_DIR=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    *found, faults = json.loads(ended.stdout.partition("\nFOUND ")[2])
    loaders, models = "vllm.model_executor.model_loader", "vllm.entrypoints.openai.models.serving"
    assert found == [[], True, [models, loaders], "ColdstreamLoader", True, [models], True]
    ours, theirs, none = faults
    assert 'pass load_format="coldstream" to LLM' in ours
    assert "--load-format coldstream" in ours
    assert str(tmp_path / "cache") in ours
    assert theirs.startswith("SafetensorError")
    assert none is None
