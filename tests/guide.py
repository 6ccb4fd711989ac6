"""Runs the commands that stand in a document, and compares what they print with what stands below them.

A block of ```console holds commands, each after "$ ", and what each prints. All blocks of a document are one session:
what one sets, the next finds. A command that ends in " &" goes on beside the others, and ends with the session. Figures
differ from run to run, so lines are compared with their numbers, dates, digests and addresses replaced; a line "..."
stands for any lines that are left out.

When the document is written anew, a line "+++" is replaced by all that was printed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = "```console"
_COMMAND_SECONDS = 240.0
_ELLIPSIS = "..."
_EVERYTHING = "+++"
_REPLACED = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"https?://[\w.:-]+"), "URL"),
    (re.compile(r"(?<![\w:/.-])(?:~|/[\w.@+-]+)/[\w.@+/-]+"), "PATH"),
    (re.compile(r"\b\d{4}-\d{2}-\d{2}[T ]?[\d:.]*(?: ?UTC|Z|\+00:00)?"), "WHEN"),
    (re.compile(r"\b(?:just now|\d+ \w+ ago)\b"), "AGO"),
    (re.compile(r"\b[0-9a-f]{7,64}\b"), "HASH"),
    (re.compile(r"\bunder \$0\.01"), "$#"),
    # With their units, which may differ as well: 980 ms, 1.2 s.
    (
        re.compile(
            r"\d[\d,]*(?:\.\d+)?(?:\s?(?:ms|s|m|h|µs|[kMGT]?B|[KMGT]iB|MB/s|GB/s|kB/s|%|x)(?:/s)?\b|%)?"
            r"(?: \d\d [sm]\b)?"
        ),
        "#",
    ),
    (re.compile(r"[█▌▐▏▎▍▋▊▉]+"), ""),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Step:
    """A command of a document, and what stands below it.

    Attributes:
        line: Where the command stands, from 1.
        command: Without "$ ".
        shown: Lines.
    """

    line: int
    command: str
    shown: tuple[str, ...]


def steps(text: str) -> list[Step]:
    """The commands of a document, in order; one that ends in a backslash goes on in the next line."""
    found: list[Step] = []
    inside = False
    continued = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside = line.rstrip() == _FENCE
        elif inside and (line.startswith("$ ") or continued):
            command = continued + line.removeprefix("$ ")
            continued = f"{command[:-1]}" if command.endswith("\\") else ""
            if not continued:
                found.append(Step(number, _without_remark(command), ()))
        elif inside and found:
            found[-1] = Step(found[-1].line, found[-1].command, (*found[-1].shown, line))
    return found


def _without_remark(command: str) -> str:
    return re.sub(r"\s{2,}#\s.*$", "", command)


def normal(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, replacement in _REPLACED:
        line = pattern.sub(replacement, line)
    return line.strip()


def missing(shown: Sequence[str], printed: Sequence[str]) -> str | None:
    """The first line of a document that was not printed where it should have been; None when all were.

    Args:
        shown: In the document; "..." for what is left out.
        printed: By the command.
    """
    wanted = [line for line in shown if line.strip()]
    have = [normal(line) for line in printed if line.strip()]
    at, free = 0, False
    for line in wanted:
        if line.strip() == _ELLIPSIS:
            free = True
            continue
        expected = normal(line)
        found = next((i for i in range(at, len(have) if free else min(at + 1, len(have))) if have[i] == expected), None)
        if found is None:
            return line
        at, free = found + 1, False
    return None if free or at == len(have) or not wanted else f"(and nothing after it): {have[at]}"


class Session:
    """A shell whose variables last from command to command."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """Begins one.

        Args:
            folder: Where it works.
            environ: What it begins with.
        """
        self._folder, self._environ = folder, {**environ}
        self._variables = folder / ".session-variables"
        self._restored = f"[ -e {self._variables} ] && . {self._variables}"
        self._beside: list[subprocess.Popen[str]] = []

    def run(self, step: Step) -> tuple[int, list[str]]:
        """Runs a command; its exit code and the lines that it printed, errors among them."""
        if step.command.endswith(" &"):
            return self._begin(step)
        script = f"{self._restored}\n{step.command}\ncode=$?; export -p > {self._variables}; exit $code"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()

    def _begin(self, step: Step) -> tuple[int, list[str]]:
        """Begins a command and waits until it has printed the last line that is shown."""
        last = next((line for line in reversed(step.shown) if line.strip() not in {"", _ELLIPSIS}), None)
        path = self._folder / f".session-{len(self._beside)}"
        script = f"{self._restored}\nexec {step.command.removesuffix(' &')}"
        with open(path, "w") as file:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._beside.append(process)
        deadline = time.monotonic() + _COMMAND_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            lines = path.read_text(errors="replace").splitlines()
            if last is None or normal(last) in {normal(line) for line in lines}:
                return 0, lines
            time.sleep(0.2)
        return process.poll() or 1, path.read_text(errors="replace").splitlines()

    def close(self) -> None:
        """Ends what goes on."""
        for process in self._beside:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while any(process.poll() is None for process in self._beside) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in self._beside:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def faults(text: str, session: Session) -> Iterator[str]:
    """What differs between a document and what its commands print."""
    for step in steps(text):
        code, printed = session.run(step)
        line = missing(step.shown, printed)
        # A failure that is shown is meant.
        fails = code != 0 and not any(shown.startswith(("error:", "fail")) for shown in step.shown)
        if line is not None or fails:
            said = "\n    ".join(printed[-40:])
            yield f"line {step.line}: $ {step.command}   (exit {code})\n  not printed: {line}\n  printed:\n    {said}"


def written(text: str, session: Session) -> str:
    """The document with what its commands print now; lines stay left out where they are."""
    lines = text.splitlines()
    for step in reversed([*_run_all(text, session)]):
        found, printed = step
        shown = found.shown
        kept = printed if _EVERYTHING in shown else _abridged(shown, printed)
        lines[found.line : found.line + len(shown)] = [line.rstrip() for line in kept]
    return "\n".join(lines) + "\n"


def _run_all(text: str, session: Session) -> Iterator[tuple[Step, list[str]]]:
    for step in steps(text):
        code, printed = session.run(step)
        print(f"$ {step.command}   -> {code}", file=sys.stderr)
        yield step, printed


def _abridged(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """What was printed, of the lines that are shown; what is new where nothing is left out stays out."""
    by_normal: dict[str, list[str]] = {}
    for line in printed:
        by_normal.setdefault(normal(line), []).append(line)
    kept = []
    for line in shown:
        now = by_normal.get(normal(line))
        kept.append(line if line.strip() in {"", _ELLIPSIS} or not now else now.pop(0))
    return kept
