"""`coldstream doctor`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from coldstream.cli.output import coloured, echo
from coldstream.cli.session import State
from coldstream.cli.shared_options import common_options, vllm_option

if TYPE_CHECKING:
    from coldstream.operate.probe import Check

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
# What takes less is over before anybody wonders.
_PATIENCE_SECONDS = 1.0
_TICK_SECONDS = 0.2
_EXIT_CODES = "Exit codes: 0 no check failed, 1 a check failed, 2 usage, 130 cancelled."


@click.command(epilog=_EXIT_CODES)
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--only", metavar="CHECK", multiple=True, help="Run only this check. Repeatable.")
@click.option("--skip", metavar="CHECK", multiple=True, help="Skip this check. Repeatable.")
@click.option("--quick", is_flag=True, help="Skip the slow checks: sampled hashes and speed.")
@vllm_option
@common_options
def command(
    state: State, name: str | None, only: tuple[str, ...], skip: tuple[str, ...], quick: bool, program: str | None
) -> int:
    """Diagnose the configuration, bucket, model and node, with fixes.

    \b
    coldstream doctor                                   without a model
    coldstream doctor Qwen/Qwen3-8B
    coldstream doctor Qwen/Qwen3-8B --quick
    coldstream doctor Qwen/Qwen3-8B --only speed --only disk
    coldstream doctor Qwen/Qwen3-8B --json || exit 1    in CI

    docs/doctor.md describes each check, its failures and their fixes.
    """
    from coldstream.operate.doctor.case import Case
    from coldstream.operate.doctor.checklist import examine, select

    items = select(only=only, skip=skip, quick=quick)
    waiting = _ProgressLine(sys.stderr if sys.stderr.isatty() and not state.quiet else None)
    case = Case(state.settings(), name, vllm=program, tell=waiting.tell)
    checks = []
    with waiting.shown():
        for check in examine(case, items, begin=waiting.begin):
            waiting.end()
            checks.append(check)
            if not state.json:
                _print(check)
    counts = {kind: sum(check.state == kind for check in checks) for kind in ("fail", "warn", "ok", "skipped")}
    state.show(
        {
            "checks": [check.document() for check in checks],
            "failed": counts["fail"],
            "warned": counts["warn"],
            "skipped": counts["skipped"],
            "ok": counts["ok"],
        },
        _summary(counts),
    )
    return 1 if counts["fail"] else 0


def _print(check: Check) -> None:
    word = coloured(f"{check.state:<5}", _COLOURS[check.state]) if check.state in _COLOURS else f"{'-':<5}"
    echo(f"{word} {check.name:<16} {check.detail}")
    if check.hint and check.state in {"warn", "fail"}:
        echo(f"{'':<22} {check.hint}")


def _summary(counts: dict[str, int]) -> str:
    from coldstream.units import plural

    text = f"{counts['fail']} failed, {plural(counts['warn'], 'warning')}, {counts['ok']} ok"
    return text + (f", {counts['skipped']} skipped" if counts["skipped"] else "")


class _ProgressLine:
    """A line on a terminal that names the running check and its duration, once it takes longer than a second."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._what, self._since, self._drawn = "", 0.0, False

    def begin(self, what: str) -> None:
        """Something is looked at."""
        with self._lock:
            self._what, self._since = what, time.monotonic()

    def tell(self, text: str) -> None:
        """How far that is."""
        with self._lock:
            self._what = f"{self._what.partition('   ')[0]}   {text}"

    def end(self) -> None:
        """It is over: the line goes."""
        with self._lock:
            self._what = ""
            self._clear()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it is drawn."""
        if self._stream is None:
            yield
            return
        done = threading.Event()

        def draw() -> None:
            while not done.wait(_TICK_SECONDS):
                self._draw()

        drawing = threading.Thread(target=draw, name="waiting", daemon=True)
        drawing.start()
        try:
            yield
        finally:
            done.set()
            drawing.join()
            self.end()

    def _draw(self) -> None:
        with self._lock:
            seconds = time.monotonic() - self._since
            if self._stream is not None and self._what and seconds >= _PATIENCE_SECONDS:
                self._stream.write(f"\r\x1b[K…     {self._what}   {seconds:.0f} s")
                self._stream.flush()
                self._drawn = True

    def _clear(self) -> None:
        if self._stream is not None and self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
