"""Why vLLM failed, by the tracebacks and usage errors in its output. Pure."""

from __future__ import annotations

import re

# vLLM's processes put this before each line, and their logs before each line of a traceback.
_PREFIX = re.compile(r"^(?:\((\S+ pid=\d+)\) )?(?:ERROR \S+ \S+ \[[^]]*\] )?")
# The last line of a traceback, which no indentation precedes.
_RAISED = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception))\b(?:: (.*))?$")
_USAGE = re.compile(r"vllm\b[^:]*: (error: .*)$")
_UNRECOGNIZED = "error: unrecognized arguments:"
# How a process reports that another one has failed.
_CONSEQUENCE = re.compile(
    r"Engine core initialization failed|initialization failed due to|[Ss]ee (?:root cause|stack trace)"
)
_VALIDATION = re.compile(r"\d+ validation errors? for ")
_UNKNOWN_FORMAT = re.compile(r"Load format `?coldstream`? is not supported")
_REASON_CHARACTERS = 300


class FailureReason:
    """Reads the output line by line. Of several processes the first reason counts, of nested exceptions the outermost.

    Attributes:
        hint: What the user can do about it, or None.
    """

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}
        self._last: tuple[str, str] | None = None
        self._incomplete: str | None = None
        self.hint: str | None = None

    def line(self, text: str) -> None:
        """Reads a line of vLLM's output."""
        if _UNKNOWN_FORMAT.search(text):
            self.hint = "this vLLM cannot find coldstream: install it in vLLM's own environment"
        process = _process(text)
        if self._incomplete == process:
            self._complete(process, _PREFIX.sub("", text))
            return
        reason = raised(text)
        if reason is None:
            return
        self._last = process, reason
        if _CONSEQUENCE.search(reason) is None:
            self._causes[process] = reason
            if _VALIDATION.search(reason):
                self._incomplete, self._causes[process] = process, ""

    def _complete(self, process: str, text: str) -> None:
        """Adds what pydantic prints below its exception: the field (unless it concerns all), and what is wrong."""
        is_field = not text.startswith(" ")
        message = text.strip().partition(" [type=")[0].removeprefix("Value error, ")
        self._causes[process] += f"{text.strip()}: " if is_field else message
        self._causes[process] = _cut(self._causes[process])
        if not is_field:
            self._incomplete = None

    @property
    def text(self) -> str | None:
        """The reason in one line; None when none was printed."""
        if self._last is None:
            return None
        process, reason = self._last
        causes = self._causes
        if _CONSEQUENCE.search(reason):
            # A process that reports another's failure may have logged harmless errors of its own.
            causes = {at: cause for at, cause in causes.items() if at != process} or causes
        return next(iter(causes.values()), reason)


def raised(line: str) -> str | None:
    """The exception at the end of a traceback, or the usage error, in a line of output; None in other lines.

    >>> raised("(Worker pid=7) ERROR 11-28 19:03:58 [multiproc_executor.py:953] ValueError: no such shape")
    'ValueError: no such shape'
    """
    plain = _PREFIX.sub("", line.rstrip())
    if usage := _USAGE.match(plain):
        return _cut(_without_values(usage[1]))
    match = _RAISED.match(plain)
    if match is None:
        return None
    name, message = match.groups()
    # Our own messages make sense without the class's name.
    return _cut(message if message and name.startswith("coldstream.") else match.group())


def _process(line: str) -> str:
    match = _PREFIX.match(line)
    return (match[1] if match else None) or ""


def _without_values(text: str) -> str:
    """Removes values: that of a misspelt flag may be a secret, and reasons are stored."""
    if not text.startswith(_UNRECOGNIZED):
        return text
    flags = [word.partition("=")[0] for word in text.removeprefix(_UNRECOGNIZED).split() if word.startswith("-")]
    return " ".join([_UNRECOGNIZED, *flags])


def _cut(text: str) -> str:
    return text[:_REASON_CHARACTERS]
