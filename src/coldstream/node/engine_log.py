"""What an engine's output says: how far a start is, and why it failed. Pure.

Time stamps have whole seconds, so the time at which a line arrives counts. When several patterns match a line, the
leftmost match wins: behind it may come a model's name or a configuration, with any words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from coldstream.telemetry.timeline.recorder import LogFacts

NUMBER = r"[0-9][0-9,]*(?:\.[0-9]+)?"
# The last line of a traceback, which no indentation precedes.
_RAISED = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception))\b(?:: (.*))?$")
_UNRECOGNIZED = "error: unrecognized arguments:"
_VALIDATION = re.compile(r"\d+ validation errors? for ")
_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a start: its name in `coldstream.telemetry.timeline.phases`, and a pattern of what is printed there.

    With `last`, the last of several processes to print it sets the mark (their work ends), otherwise the first (their
    work begins).
    """

    name: str
    lines: str
    last: bool = False


class LogReader:
    """Looks for marks and figures, which the engine prints in seconds or counts, in the lines of a log."""

    def __init__(self, marks: Sequence[Mark], figures: Sequence[tuple[str, re.Pattern[str]]]) -> None:
        self._any = re.compile("|".join(f"(?P<{mark.name}>{mark.lines})" for mark in marks))
        self._last = {mark.name: mark.last for mark in marks}
        self._figures = figures

    def read_line(self, line: str) -> LogFacts:
        """What a line says about the start."""
        match = self._any.search(line)
        mark = match.lastgroup if match else None
        return LogFacts(
            mark=mark,
            is_last=mark is not None and self._last[mark],
            figures={name: number(match[1]) for name, pattern in self._figures if (match := pattern.search(line))},
        )


def number(text: str) -> float:
    """A number as `NUMBER` matches it."""
    return float(text.replace(",", ""))


class EngineFailure:
    """Reads the output line by line: the first reason of several processes, the outermost of nested exceptions."""

    # What precedes a line: the process as the first group, if the log names it.
    prefix: ClassVar[re.Pattern[str]]
    # The engine's own line about wrong arguments, with the error as the first group.
    usage: ClassVar[re.Pattern[str]]
    # How a process reports that another one has failed.
    consequence: ClassVar[re.Pattern[str]]
    # Lines that have a remedy, and the remedy.
    hints: ClassVar[Sequence[tuple[re.Pattern[str], str]]] = ()

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}
        self._last: tuple[str, str] | None = None
        self._incomplete: str | None = None
        self.hint: str | None = None

    def line(self, text: str) -> None:
        self.hint = next((hint for pattern, hint in self.hints if pattern.search(text)), self.hint)
        match = self.prefix.match(text)
        process = (match and match[1]) or ""
        if self._incomplete == process:
            self._complete(process, self.prefix.sub("", text))
            return
        reason = self.raised(text)
        if reason is None:
            return
        self._last = process, reason
        if self.consequence.search(reason) is None:
            self._causes[process] = reason
            if _VALIDATION.search(reason):
                self._incomplete, self._causes[process] = process, ""

    def _complete(self, process: str, text: str) -> None:
        """Adds what pydantic prints below its exception: the field (unless it concerns all), and what is wrong."""
        is_field = not text.startswith(" ")
        message = text.strip().partition(" [type=")[0].removeprefix("Value error, ")
        cause = self._causes[process] + (f"{text.strip()}: " if is_field else message)
        self._causes[process] = cause[:_REASON_CHARACTERS]
        if not is_field:
            self._incomplete = None

    @property
    def text(self) -> str | None:
        if self._last is None:
            return None
        process, reason = self._last
        causes = self._causes
        if self.consequence.search(reason):
            # A process that reports another's failure may have logged harmless errors of its own.
            causes = {at: cause for at, cause in causes.items() if at != process} or causes
        return next(iter(causes.values()), reason)

    @classmethod
    def raised(cls, line: str) -> str | None:
        """The exception at the end of a traceback, or the usage error, in a line of output; None in other lines."""
        plain = cls.prefix.sub("", line.rstrip())
        if usage := cls.usage.match(plain):
            reason = usage[1]
            if reason.startswith(_UNRECOGNIZED):
                # The value of a misspelt flag may be a secret, and reasons are stored.
                flags = [
                    word.partition("=")[0] for word in reason.removeprefix(_UNRECOGNIZED).split() if word[0] == "-"
                ]
                reason = " ".join([_UNRECOGNIZED, *flags])
            return reason[:_REASON_CHARACTERS]
        match = _RAISED.match(plain)
        if match is None:
            return None
        name, message = match.groups()
        # Our own messages make sense without the class's name.
        return (message if message and name.startswith("coldstream.") else match.group())[:_REASON_CHARACTERS]
