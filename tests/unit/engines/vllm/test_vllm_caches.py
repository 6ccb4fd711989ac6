from __future__ import annotations

import os
from pathlib import Path

from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.node.bundle.bundle_pointer import Key
from coldstream.node.bundle.local_bundles import LocalBundle


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
    key = Key(parts={})
    root = LocalBundle(tmp_path, key, VllmCaches()).root
    write(root, *kept, *left)
    os.symlink("/etc/passwd", root / "vllm/link")
    os.symlink("/etc", root / "inductor/etc")
    os.mkfifo(root / "inductor/pipe")
    found = LocalBundle(tmp_path, key, VllmCaches()).tree()
    assert set(found) == kept
    assert found["inductor/ab/c.so"][0] == len("inductor/ab/c.so")


def test_compiled_files_are_told_from_others() -> None:
    caches = VllmCaches()
    assert caches.is_compiled("inductor/b.so")
    assert caches.is_compiled("vllm/torch_compile_cache/x/rank_0_0/model")
    assert not caches.is_compiled("vllm/modelinfos/b.json")


def test_the_environment_leaves_what_the_user_chose() -> None:
    found = VllmCaches(gpu=True, version="0.32.0").environment("/c", {})
    assert found["VLLM_CACHE_ROOT"] == "/c/vllm"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/c/inductor"
    assert found["VLLM_ENABLE_STARTUP_PLAN"] == "1"
    assert "VLLM_USE_AOT_COMPILE" not in found
    chosen = {"TRITON_CACHE_DIR": "/t", "VLLM_CACHE_ROOT": "/v", "VLLM_ENABLE_STARTUP_PLAN": "0"}
    found = VllmCaches(gpu=True, version="0.32.0").environment("/v/coldstream/c", chosen)
    assert found["VLLM_CACHE_ROOT"] == "/v/coldstream/c/vllm"
    assert not {"TRITON_CACHE_DIR", "VLLM_ENABLE_STARTUP_PLAN"} & found.keys()


def test_each_platform_gets_what_it_can_load_again() -> None:
    assert VllmCaches(gpu=False, version="0.32.0+cpu").environment("/c", {})["VLLM_USE_AOT_COMPILE"] == "0"
    assert "VLLM_USE_AOT_COMPILE" not in VllmCaches(gpu=False, version="0.32").environment(
        "/c", {"VLLM_USE_AOT_COMPILE": "1"}
    )
    assert "VLLM_ENABLE_STARTUP_PLAN" not in VllmCaches(gpu=True, version="0.31.1").environment("/c", {})
