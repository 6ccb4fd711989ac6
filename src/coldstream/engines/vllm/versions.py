"""Which versions of vLLM this works with. Pure."""

from __future__ import annotations

import re

# 0.28 was run, and 0.32 is by the tests; of all of them, what is used was looked up in the source. See docs/serve.md.
OLDEST = (0, 28)
NEWEST = (0, 33)


def version_warning(version: str) -> str | None:
    """What to say of a version of vLLM, or None when it is one that was tried.

    Args:
        version: As the distribution names it: "0.32.0", "0.32.0+cpu".
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and OLDEST <= (int(match[1]), int(match[2])) <= NEWEST:
        return None
    tried = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    return f"vLLM {version} has not been tried with coldstream, which is for {tried}"
