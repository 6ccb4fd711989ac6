from __future__ import annotations

import os
from pathlib import Path

from coldstream.node.bundle import caches


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_what_is_worth_keeping(tmp_path: Path) -> None:
    kept = {
        "vllm/modelinfos/a.json",
        "vllm/torch_compile_cache/x/rank_0_0/model",
        "inductor/ab/c.so",
        "triton/k/k.cubin",
    }
    left = {
        "vllm/assets/model/config.json",
        "inductor/locks/c.lock",
        "vllm/a.lock",
        "triton/k/x.tmp",
        "inductor/y.tmp.12",
    }
    write(tmp_path, *kept, *left)
    os.symlink("/etc/passwd", tmp_path / "vllm/link")
    os.symlink("/etc", tmp_path / "inductor/etc")
    os.mkfifo(tmp_path / "inductor/pipe")
    found = caches.tree(str(tmp_path))
    assert set(found) == kept
    assert found["inductor/ab/c.so"][0] == len("inductor/ab/c.so")


def test_what_was_built_and_what_of_it_was_compiled() -> None:
    before = {"vllm/modelinfos/a.json": (1, 1), "inductor/a.so": (1, 1)}
    now = {
        "vllm/modelinfos/a.json": (2, 2),
        "inductor/a.so": (1, 1),
        "vllm/modelinfos/b.json": (1, 1),
        "inductor/b.so": (1, 1),
    }
    built = caches.built(before, now)
    assert built == ["inductor/b.so", "vllm/modelinfos/b.json"], "rewritten files are nothing new"
    assert caches.compiled(built) == ["inductor/b.so"]


def test_the_environment_leaves_what_the_user_chose() -> None:
    found = caches.environment("/c", {}, gpu=True, vllm="0.32.0")
    assert found["VLLM_CACHE_ROOT"] == "/c/vllm"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/c/inductor"
    assert found["VLLM_ENABLE_STARTUP_PLAN"] == "1"
    assert "VLLM_USE_AOT_COMPILE" not in found
    chosen = {"TRITON_CACHE_DIR": "/t", "VLLM_CACHE_ROOT": "/v", "VLLM_ENABLE_STARTUP_PLAN": "0"}
    found = caches.environment("/v/coldstream/c", chosen, gpu=True, vllm="0.32.0")
    assert found["VLLM_CACHE_ROOT"] == "/v/coldstream/c/vllm"
    assert not {"TRITON_CACHE_DIR", "VLLM_ENABLE_STARTUP_PLAN"} & found.keys()


def test_each_platform_gets_what_it_can_load_again() -> None:
    assert caches.environment("/c", {}, gpu=False, vllm="0.32.0+cpu")["VLLM_USE_AOT_COMPILE"] == "0"
    assert "VLLM_USE_AOT_COMPILE" not in caches.environment("/c", {"VLLM_USE_AOT_COMPILE": "1"}, gpu=False, vllm="0.32")
    assert "VLLM_ENABLE_STARTUP_PLAN" not in caches.environment("/c", {}, gpu=True, vllm="0.31.1")
