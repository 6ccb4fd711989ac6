"""Runs in SGLang's environment: what the plugin costs a process, and when it changes the loader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LOADER = "sglang.srt.model_loader.loader"


def main(out: Path) -> None:
    """Writes what it sees."""
    before = set(sys.modules)
    import coldstream.engines.sglang

    coldstream.engines.sglang.register()
    coldstream.engines.sglang.register()
    roots = {name.partition(".")[0] for name in set(sys.modules) - before}
    light = sorted(roots & {"torch", "sglang", "numpy", "boto3"})
    from tests.sglang import absent

    absent.install()
    from sglang.srt.plugins import load_plugins

    load_plugins()
    waits = LOADER not in sys.modules
    from sglang.srt.model_loader.loader import DefaultModelLoader

    streaming = DefaultModelLoader._get_weights_iterator
    coldstream.engines.sglang.register()
    found = {
        "light": light,
        "waits": waits,
        "streams": streaming.__wrapped__.__module__ == LOADER,
        "once": DefaultModelLoader._get_weights_iterator is streaming,
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
