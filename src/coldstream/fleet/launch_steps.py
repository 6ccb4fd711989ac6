"""The steps of a launch, recognised in SkyPilot's output, and where its time went. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coldstream.telemetry.timeline.start_record import ReadyLine

# The lines with which SkyPilot 0.14 begins a step.
_BEGINNINGS = (
    (re.compile(r"\bLaunching\b.* on "), "provision"),
    (re.compile(r"\bCluster launched\b"), "files"),
    (re.compile(r"\b(?:Job submitted|Managed Job ID|Service (?:.+ )?is spinning up)\b"), "submitted"),
)
_JOB = re.compile(r"\b(?:Job submitted, ID|Managed Job ID): (\d+)")
_TEXTS = {
    "ask": "SkyPilot is looking for a machine",
    "provision": "the cloud is starting the machine",
    "controller": "SkyServe's controller, then the replica's machine",
    "files": "SkyPilot is setting up the machine",
    "setup": "image and installation of coldstream",
    "submitted": "SkyPilot has accepted it: setup on the machine, then vLLM",
    "replaced": "a machine was lost; SkyPilot is replacing it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPhase:
    """A part of the time of a launch.

    Attributes:
        name: "ask", "provision", "controller", "files", "setup", "start", or a phase of the start.
        of_start: Whether it is a phase of `coldstream serve`, on the node.
    """

    name: str
    seconds: float
    note: str = ""
    of_start: bool = False


@dataclass(slots=True)
class Steps:
    """When each step began, in seconds since the launch began."""

    began: dict[str, float] = field(default_factory=lambda: {"ask": 0.0})
    job: int | None = None

    def line(self, text: str, now: float) -> str | None:
        """Reads a line without colours; returns the step that begins with it, or None."""
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
            ended: When SkyPilot's command ended.
            ready: When the model answered.
            start: Printed by `serve` on the node; None if it could not be read.
        """
        submitted = self.began.get("submitted", ended)
        served = min(start.ready_seconds, ready - submitted) if start is not None else 0.0
        if kind == "service":
            marks = [("controller", 0.0), ("setup", submitted)]
        else:
            marks = [(name, self.began[name]) for name in ("ask", "provision", "files") if name in self.began]
            marks.append(("setup", submitted))
        stops = [at for _, at in marks[1:]] + [ready - served]
        phases = [
            LaunchPhase(name=name, seconds=max(0.0, stop - at), note=_TEXTS[name])
            for (name, at), stop in zip(marks, stops, strict=True)
        ]
        if kind == "service":
            # The controller's steps for a replica are not visible from here.
            phases[1] = LaunchPhase(name="replica", seconds=phases[1].seconds, note="machine, files and setup")
        if start is None:
            return [
                *phases[:-1],
                LaunchPhase(name="start", seconds=phases[-1].seconds, note="setup and start, on the node"),
            ]
        spans = sorted((*start.phases, *start.spans), key=lambda span: (span.start, span.stop))
        inside = [LaunchPhase(name=span.name, seconds=span.seconds, note=span.note, of_start=True) for span in spans]
        return [*phases, LaunchPhase(name="start", seconds=served, note="coldstream serve, until it answered"), *inside]


def step_text(step: str) -> str:
    """The text that announces a step."""
    return _TEXTS.get(step, step)
