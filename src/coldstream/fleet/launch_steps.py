"""How far a launch has come, by what SkyPilot prints, and where its time went. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coldstream.telemetry.timeline.ready_line import ReadyLine

# What a line begins, by SkyPilot 0.14.
_BEGINNINGS = (
    (re.compile(r"\bLaunching\b.* on "), "provision"),
    (re.compile(r"\bCluster launched\b"), "files"),
    (re.compile(r"\b(?:Job submitted|Managed Job ID|Service (?:.+ )?is spinning up)\b"), "submitted"),
)
_JOB = re.compile(r"\b(?:Job submitted, ID|Managed Job ID): (\d+)")
_WORDS = {
    "ask": "SkyPilot looks for a machine",
    "provision": "the cloud brings it up",
    "controller": "SkyServe's controller, then the replica's machine",
    "files": "file and runtime, by SkyPilot",
    "setup": "image, coldstream and whatever else is installed",
    "replaced": "a machine is gone; SkyPilot brings up another by itself",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPhase:
    """Where time went.

    Attributes:
        name: "ask", "provision", "controller", "files", "setup", or one of a start's own.
        seconds: How long.
        note: For people.
        of_start: Whether it is inside of `coldstream serve`, on the node.
    """

    name: str
    seconds: float
    note: str = ""
    of_start: bool = False


@dataclass(slots=True)
class Steps:
    """When each step of a launch began, in seconds since the launch did."""

    began: dict[str, float] = field(default_factory=lambda: {"ask": 0.0})
    job: int | None = None

    def line(self, text: str, now: float) -> str | None:
        """Reads a line of SkyPilot's.

        Args:
            text: Without colours.
            now: In seconds since the launch began.

        Returns:
            The step that begins with it; None when none does.
        """
        if match := _JOB.search(text):
            self.job = int(match[1])
        name = next((name for pattern, name in _BEGINNINGS if pattern.search(text)), None)
        if name is None or name in self.began:
            return None
        self.began[name] = now
        return name

    def phases(self, *, kind: str, ended: float, ready: float, start: ReadyLine | None) -> list[LaunchPhase]:
        """Where the time went.

        Args:
            kind: Of the launch.
            ended: When SkyPilot's command had ended.
            ready: When the model answered.
            start: What `serve` printed on the node; None when that could not be read.
        """
        submitted = self.began.get("submitted", ended)
        served = min(start.ready_seconds, ready - submitted) if start is not None else 0.0
        if kind == "service":
            marks = [("controller", 0.0), ("setup", submitted)]
        else:
            marks = [(name, self.began[name]) for name in ("ask", "provision", "files") if name in self.began]
            marks.append(("setup", submitted))
        stops = [at for _, at in marks[1:]] + [ready - served]
        found = [
            LaunchPhase(name=name, seconds=max(0.0, stop - at), note=_WORDS[name])
            for (name, at), stop in zip(marks, stops, strict=True)
        ]
        if kind == "service":
            # What the controller does for a replica cannot be seen from here.
            found[1] = LaunchPhase(name="replica", seconds=found[1].seconds, note="its machine, its files, its setup")
        if start is None:
            return [
                *found[:-1],
                LaunchPhase(name="start", seconds=found[-1].seconds, note="setup and start, on the node"),
            ]
        spans = sorted((*start.phases, *start.spans), key=lambda span: (span.start, span.stop))
        inside = [LaunchPhase(name=span.name, seconds=span.seconds, note=span.note, of_start=True) for span in spans]
        return [*found, LaunchPhase(name="start", seconds=served, note="coldstream serve, until it answered"), *inside]


def words(step: str) -> str:
    """A step for people."""
    return {"submitted": "SkyPilot has it: set-up on the machine, then vLLM"}.get(step, _WORDS.get(step, step))
