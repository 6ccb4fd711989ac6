"""Are this machine's processors busy? Then more connections cannot help, whatever the bucket could give."""

from __future__ import annotations

# Below this idle share nothing is left for another connection's bytes.
IDLE_SHARE_MIN = 0.08
# /proc/stat counts in hundredths of a second: a shorter look would be noise.
LOOK_SECONDS = 0.1


class Processors:
    """Looks at how idle the processors were between two looks.

    Attributes:
        full: Whether they were busy, all of them, at the last look. False where the system does not tell.
    """

    def __init__(self, now: float, *, path: str = "/proc/stat") -> None:
        self.full = False
        self._path = path
        self._looked = now
        self._before = self._times()

    def look(self, now: float) -> None:
        """Looks again, if the last look is long enough ago."""
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        idle, total = self._times()
        passed = total - self._before[1]
        self.full = passed > 0 and (idle - self._before[0]) < IDLE_SHARE_MIN * passed
        self._before = idle, total

    def _times(self) -> tuple[int, int]:
        """(idle, all), in ticks since the start of the machine."""
        try:
            with open(self._path, encoding="ascii") as file:
                # cpu user nice system idle iowait irq softirq steal …; guests are in user already.
                fields = [int(field) for field in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        return sum(fields[3:5]), sum(fields)
