"""The recipes of docs/recipes.md run in vLLM's environment, which has torch, transformers and diffusers."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.stores import S3Server
from tests.vllm.conftest import PYTHON, ROOT, clean_environ

PAGE = (ROOT / "docs/recipes.md").read_text()
RECIPES: dict[str, str] = dict(re.findall(r"^## (.*?)\n+```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def run(code: str, environ: dict[str, str], folder: Path) -> str:
    """What a script prints in vLLM's environment."""
    script = folder / "recipe.py"
    script.write_text(code)
    ended = subprocess.run(
        [str(PYTHON), str(script)], env=environ, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    return ended.stdout


@pytest.fixture
def bucket(rclone: S3Server, tmp_path: Path) -> Command:
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    return command


def environ_of(bucket: Command, tmp_path: Path) -> dict[str, str]:
    values = {name: value for name, value in bucket.environ.items() if name.startswith(("R2_", "AWS_"))}
    return clean_environ(**values, COLDSTREAM_CACHE_DIR=str(tmp_path / "cache"))


def test_a_plain_torch_module(bucket: Command, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    (tmp_path / "mlp").mkdir()
    save_file(module.state_dict(), tmp_path / "mlp/model.safetensors")
    bucket.run("upload", str(tmp_path / "mlp"), "--as", "org/mlp")
    check = "torch.manual_seed(0)\nprint(module(torch.ones(64)).sum().item())"
    out = run(f"{RECIPES['A plain torch module']}\n{check}", environ_of(bucket, tmp_path), tmp_path)
    assert "4 tensors, verified: True" in out
    assert float(out.split()[-1]) == pytest.approx(module(torch.ones(64)).sum().item(), rel=1e-4)


def test_a_transformers_model(bucket: Command, model: Callable[[str], Path], tmp_path: Path) -> None:
    """Its head is its embedding, and one of the two is in the checkpoint."""
    folder = model("tied-llama")
    bucket.run("upload", str(folder), "--as", "org/model")
    reference = f"""
own = AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype=torch.bfloat16)
assert own.state_dict().keys() == model.state_dict().keys()
for tensor_name, tensor in own.state_dict().items():
    assert torch.equal(tensor, model.state_dict()[tensor_name]), tensor_name
for buffer_name, buffer in own.named_buffers():
    assert torch.equal(buffer, model.get_buffer(buffer_name)), buffer_name
print("equal to", own.generate(**tokens, max_new_tokens=8, do_sample=False)[0].tolist())
"""
    out = run(f"{RECIPES['A transformers model']}\n{reference}", environ_of(bucket, tmp_path), tmp_path)
    ours, own = re.findall(r"(\[\d[\d, ]+\])", out)
    assert ours == own
    assert len(json.loads(own)) > 8


def test_a_diffusers_pipeline(bucket: Command, tmp_path: Path) -> None:
    """A small random pipeline, in one manifest."""
    make = f"""
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

torch.manual_seed(1)
blocks = {{"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}}
unet = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), **blocks
)
pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler(num_train_timesteps=10))
pipeline.save_pretrained({str(tmp_path / "pipeline")!r})
"""
    environ = environ_of(bucket, tmp_path)
    try:
        run(make, environ, tmp_path)
    except AssertionError as exc:
        if "No module named 'diffusers'" in str(exc):
            pytest.skip("diffusers is not installed beside vLLM: make .venv-vllm/tests.done")
        raise
    bucket.run("upload", str(tmp_path / "pipeline"), "--as", "org/pipeline")
    reference = f"""
import torch

own = DDPMPipeline.from_pretrained({str(tmp_path / "pipeline")!r})
images = [
    each(num_inference_steps=2, generator=torch.Generator().manual_seed(2), output_type="np").images
    for each in (own, pipeline)
]
for name, tensor in own.unet.state_dict().items():
    assert torch.equal(tensor, unet.state_dict()[name]), name
print("differ by", abs(images[0] - images[1]).max(), "of", images[0].std())
"""
    out = run(f"{RECIPES['A diffusers pipeline']}\n{reference}", environ, tmp_path)
    assert "(1, 8, 8, 1)" in out
    difference, deviation = map(float, re.findall(r"differ by (\S+) of (\S+)", out)[0])
    assert difference < 1e-5 < deviation
