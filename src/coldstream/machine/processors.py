"""Whether this machine's processors are busy, so that more connections would not help."""

from __future__ import annotations

# Below this idle share, there is no capacity for another connection.
IDLE_SHARE_MIN = 0.08
# /proc/stat counts hundredths of a second: shorter intervals would be noise.
LOOK_SECONDS = 0.1


class Processors:
    """Measures whether all processors were busy (`full`) between two calls; never without /proc/stat."""

    def __init__(self, now: float, *, path: str = "/proc/stat") -> None:
        self.full = False
        self._path = path
        self._looked = now
        self._before = self._times()

    def look(self, now: float) -> None:
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        idle, total = self._times()
        passed = total - self._before[1]
        self.full = passed > 0 and (idle - self._before[0]) < IDLE_SHARE_MIN * passed
        self._before = idle, total

    def _times(self) -> tuple[int, int]:
        """(idle, total) ticks since boot."""
        try:
            with open(self._path, encoding="ascii") as file:
                # cpu user nice system idle iowait irq softirq steal …; user includes guests.
                fields = [int(field) for field in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        return sum(fields[3:5]), sum(fields)
