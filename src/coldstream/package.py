"""The package itself: its version, and when the process imported it."""

from __future__ import annotations

import time

__version__ = "0.1.0"

# On the monotonic clock, as early as any code of the package runs: `machine.hardware.process_began` relies on it.
IMPORTED_AT = time.monotonic()
