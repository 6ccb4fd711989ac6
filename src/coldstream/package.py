"""The package's version and import time."""

from __future__ import annotations

import time

__version__ = "0.1.0"

# On the monotonic clock, before any other code of the package runs; used by `machine.hardware.process_began`.
IMPORTED_AT = time.monotonic()
