"""A SkyPilot with scripted output, without a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from coldstream.fleet.sky import Sky, SkyOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedSky(Sky):
    """SkyOutputs by how a command begins; the longest beginning wins, and of several answers the last one stays.

    Attributes:
        script: Beginning of a command to its answers: text, or exit code and text.
        commands: The commands that it was given.
    """

    path: str = "/bin/sky"
    version: str = "0.14.1"
    environment: dict[str, str] = field(default_factory=dict)
    script: dict[str, list[str | tuple[int, str]]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def ask(self, *arguments: str, seconds: float = 0.0) -> SkyOutput:
        command = " ".join(arguments)
        self.commands.append(command)
        beginning = max((known for known in self.script if command.startswith(known)), key=len, default=None)
        assert beginning is not None, f"not scripted: sky {command}"
        answers = self.script[beginning]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        code, text = (0, answer) if isinstance(answer, str) else answer
        return SkyOutput(code=code, text=text)

    def follow(self, *arguments: str, on_line: Callable[[str], None]) -> SkyOutput:
        output = self.ask(*arguments)
        for line in output.text.splitlines():
            on_line(line)
        return output
