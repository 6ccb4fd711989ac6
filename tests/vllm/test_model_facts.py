"""What a runtime learns from vLLM about models is what vLLM itself would keep, and vLLM uses it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from coldstream.engines.vllm.entry import MODEL_FACTS
from coldstream.engines.vllm.model_facts import add_model_facts
from tests.vllm.conftest import PYTHON, clean_environ

_CODE = """
from coldstream.engines.vllm.entry import copy_model_facts
copy_model_facts()
from vllm.model_executor.models import registry

def refuse(inspect):
    raise AssertionError("vLLM inspects the class again")

registry._run_in_subprocess = refuse
for name in ("LlamaForCausalLM", "Qwen3ForCausalLM", "BertModel"):
    model = registry.ModelRegistry.models[name]
    seen, now = model.inspect_model_cls(), registry._ModelInfo.from_model_cls(model.load_model_cls())
    print(name, {key for key in vars(now) if vars(now)[key] != vars(seen)[key]} - {"supported_video_pruning_methods"})
"""


def test_vllm_does_not_inspect_again(tmp_path: Path) -> None:
    # A runtime, as far as it matters here.
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / name).symlink_to(PYTHON.parent.parent / name)
    assert add_model_facts(tmp_path) > 100
    names = {path.name for path in (tmp_path / MODEL_FACTS).iterdir()}
    assert "vllm-model_executor-models-llama-LlamaForCausalLM.json" in names
    ended = subprocess.run(
        [str(tmp_path / "bin/python3"), "-c", _CODE],
        env=clean_environ(VLLM_CACHE_ROOT=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    same = [line for line in ended.stdout.splitlines() if line.endswith(" set()")]
    assert same == ["LlamaForCausalLM set()", "Qwen3ForCausalLM set()", "BertModel set()"]
