"""Runs SGLang with an API key from the environment: `python -m coldstream.engines.sglang.sglang_entry serve …`.

SGLang takes its key only from its arguments, which every user of the machine can read, and logs it. Here it is added
within the process, and masked in the log. Processes that SGLang spawns import this module first.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import suppress
from typing import Any

_VARIABLE = "VLLM_API_KEY"
_KEYS = re.compile(r"(api_key'?[=:] ?)'[^']*'")


def mask_keys() -> None:
    """Masks keys in what this process logs from now on."""
    make = logging.getLogRecordFactory()

    def masked(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        # A message with other arguments than its format is for logging to report.
        with suppress(TypeError, ValueError):
            if "api_key" in (message := record.getMessage()):
                record.msg, record.args = _KEYS.sub(r"\1'****'", message), ()
        return record

    logging.setLogRecordFactory(masked)


def main() -> None:
    """What SGLang's console script does."""
    from sglang.cli.main import main as sglang

    key = os.environ.get(_VARIABLE)
    sys.argv = ["sglang", *sys.argv[1:], *(["--api-key", key] if key else [])]
    sglang()


if __name__ in {"__main__", "__mp_main__"}:
    mask_keys()
if __name__ == "__main__":
    main()
