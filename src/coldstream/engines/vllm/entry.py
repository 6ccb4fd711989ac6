"""Runs vLLM with less frequent garbage collection during imports: `python -m coldstream.engines.vllm.entry serve …`.

Importing vLLM creates objects that stay, and Python collects after every 700 new ones: 1,500 collections for one import
of vLLM 0.32. Here it collects after every `OBJECTS`, until the first full collection, which vLLM itself requests at the
end of its start (`vllm.utils.gc_utils.freeze_gc_heap`). Then the thresholds are restored.

Processes that vLLM spawns import this module first, because it is the main one (documentation of multiprocessing, "safe
importing of main module"), and those that it forks inherit the thresholds.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

OBJECTS = 50_000
MODEL_FACTS = "share/coldstream/modelinfos"


def be_patient() -> None:
    """Raises the threshold until the first full collection."""
    before = gc.get_threshold()
    if not before[0]:
        return  # it is off

    def restore(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            gc.callbacks.remove(restore)
            if gc.get_threshold() == patient:
                gc.set_threshold(*before)

    gc.set_threshold(max(OBJECTS, before[0]), *before[1:])
    patient = gc.get_threshold()
    gc.callbacks.append(restore)


def copy_model_facts() -> None:
    """Copies what the runtime knows of models (`model_facts`) to vLLM's cache, which checks that the sources match."""
    import shutil

    root = os.environ.get("VLLM_CACHE_ROOT") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vllm")
    source, target = os.path.join(sys.prefix, MODEL_FACTS), os.path.expanduser(f"{root}/modelinfos")
    with suppress(OSError):
        shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)


def main() -> None:
    """What vLLM's console script does."""
    copy_model_facts()
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv[0] = "vllm"
    sys.exit(vllm())


if __name__ in {"__main__", "__mp_main__"}:
    be_patient()
if __name__ == "__main__":
    main()
