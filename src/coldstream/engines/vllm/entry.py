"""Runs vLLM with a patient garbage collector while it imports: `python -m coldstream.engines.vllm.entry serve …`.

Importing vLLM makes objects that stay, and Python's collector looks at new ones after every 700, and at all of them
every so often: 1,500 collections for one import of vLLM 0.32. Here it looks after every `OBJECTS`, until the first full
collection, which vLLM itself does when its start is over, before it freezes what is there
(`vllm.utils.gc_utils.freeze_gc_heap`). Then all is as it was.

Processes that vLLM spawns import this module first, because it is the main one (the documentation of multiprocessing,
"safe importing of main module"), and those that it forks inherit. Nothing of vLLM is changed.
"""

from __future__ import annotations

import gc
import sys

OBJECTS = 50_000


def be_patient() -> None:
    """Lets the collector wait until the first full collection has come."""
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


def main() -> None:
    """What vLLM's console script does."""
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv[0] = "vllm"
    sys.exit(vllm())


if __name__ in {"__main__", "__mp_main__"}:
    be_patient()
if __name__ == "__main__":
    main()
