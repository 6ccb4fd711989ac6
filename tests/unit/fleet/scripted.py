"""A SkyPilot that says what a test wants, without a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from coldstream.fleet.sky import Answer, Sky


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedSky(Sky):
    """Answers by how a command begins; the longest beginning wins, and of several answers the last one stays.

    Attributes:
        script: Beginning of a command to its answers: text, or exit code and text.
        asked: What it was asked.
    """

    path: str = "/bin/sky"
    version: str = "0.14.1"
    environment: dict[str, str] = field(default_factory=dict)
    script: dict[str, list[str | tuple[int, str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def ask(self, *arguments: str, seconds: float = 0.0) -> Answer:
        command = " ".join(arguments)
        self.asked.append(command)
        beginning = max((known for known in self.script if command.startswith(known)), key=len, default=None)
        assert beginning is not None, f"nobody thought of: sky {command}"
        answers = self.script[beginning]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        code, text = (0, found) if isinstance(found, str) else found
        return Answer(code=code, text=text)

    def follow(self, *arguments: str, on_line: Callable[[str], None]) -> Answer:
        answer = self.ask(*arguments)
        for line in answer.text.splitlines():
            on_line(line)
        return answer
