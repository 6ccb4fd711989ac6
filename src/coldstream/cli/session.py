"""One run of a command: its common options, settings and store, its messages and errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldstream.cli.output import coloured, echo, echo_json, terminal_safe
from coldstream.errors import ColdstreamError, DiskError, UsageError
from coldstream.machine.atomic_file import write_output
from coldstream.model.names import Uri, without_secrets
from coldstream.settings import Settings, load_settings

if TYPE_CHECKING:
    from coldstream.net.retry import Retry
    from coldstream.operate.charts import Page
    from coldstream.places.place import Store
    from coldstream.telemetry.metrics.measuring import CommandMetrics

_WAIT_SECONDS_MIN = 2


@dataclass(slots=True)
class State:
    """The common options of one run."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    # Settings from command-line options, by the names of their variables.
    flags: dict[str, str | None] = field(default_factory=dict)
    env_file: Path | None = None
    # What a rerun after Ctrl-C continues from, for the hint; None if it starts over.
    resume: str | None = None
    warned: bool = False
    # The files of --html and --png.
    charts: dict[str, Path] = field(default_factory=dict)

    def settings(self, *, draft: bool = False) -> Settings:
        """The resolved settings; see `load_settings`."""
        settings = load_settings(self.flags, env_file=self.env_file, draft=draft)
        if settings.warning and not self.warned:
            self.say(f"warning: {settings.warning}")
            self.warned = True
        return settings

    def open_store(self, connections: int) -> Store:
        """The configured store."""
        from coldstream.places.opening import open_store

        settings = self.settings()
        return open_store(settings, retry=self.new_retry(settings), connections=connections)

    def new_retry(self, settings: Settings) -> Retry:
        """A retry policy that gives up after the configured time, and prints a line before each long wait."""
        from coldstream.net.retry import Backoff, Retry

        def on_retry(error: Exception, seconds: float) -> None:
            if seconds >= _WAIT_SECONDS_MIN:
                self.say(f"{error}; retrying in {seconds:.0f} s")

        return Retry(Backoff(give_up_seconds=settings.retry_seconds), on_retry=on_retry)

    def measured(self, settings: Settings, uri: str) -> AbstractContextManager[CommandMetrics]:
        """Serves and writes the metrics of a model's load within the block, if any are configured."""
        from coldstream.loading.load_plan import uri_key
        from coldstream.model.names import model_name
        from coldstream.telemetry.metrics.measuring import measured, metric_options

        metrics = metric_options(settings)
        key = uri_key(Uri(uri), settings) if metrics is not None else ""
        return measured(metrics, model=model_name(uri), uri=key, say=self.say)

    def say(self, text: str) -> None:
        """Prints a line of progress or advice on stderr."""
        if not self.quiet:
            echo(text, err=True)

    def warn(self, text: str) -> None:
        self.say(f"{coloured('warning:', 'yellow', sys.stderr)} {text}")

    def explain(self, message: str, hint: str | None) -> None:
        """Prints an error and its hint on stderr, without secrets; further lines are indented."""
        for label, text in ((coloured("error:", "red", sys.stderr), message), ("hint: ", hint)):
            if text:
                echo(f"{label} {without_secrets(text)}".replace("\n", "\n       "), err=True)

    def report(self, exc: ColdstreamError) -> dict[str, Any]:
        """Prints an error, with its traceback under `--debug`; returns its JSON document."""
        if self.debug:
            show_traceback(exc)
        self.explain(exc.message, exc.hint)
        return error_document(exc.kind, exc.message, exc.hint, exc.exit_code)

    def show(self, document: Any, text: str) -> None:
        """Prints the result: `document` as JSON under `--json`, otherwise `text`."""
        if self.json:
            echo_json(document, indent=2)
        else:
            echo(text)

    def check_charts(self) -> None:
        """Checks before a long measurement that its charts can be drawn and written: for matplotlib and directories."""
        from coldstream.operate.charts import check

        for path in self.charts.values():
            check()
            if not path.absolute().parent.is_dir():
                raise DiskError(f"cannot write {path}: its directory does not exist", target=str(path))

    def write_charts(self, page: Page) -> None:
        """Writes the requested charts, once all of them are drawn, each completely or not at all."""
        draw = {"html_file": lambda: page.html().encode(), "png_file": page.png}
        for path, data in [(path, draw[kind]()) for kind, path in self.charts.items()]:
            write_file(path, data)
            self.say(f"wrote {path}")


def error_document(kind: str, message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    """An error as `--json` prints it, without secrets; a contract."""
    message, hint = without_secrets(message), without_secrets(hint) if hint else None
    return {"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}}


def show_traceback(exc: Exception) -> None:
    """Prints a traceback on stderr, without secrets."""
    echo(without_secrets("".join(traceback.format_exception(exc))).rstrip(), err=True)


def write_file(path: Path, data: bytes, *, write: Callable[[Path, bytes], None] = write_output) -> None:
    """Writes a file that the user named; raises DiskError."""
    try:
        write(path, data)
    except OSError as exc:
        raise DiskError(f"cannot write {path}: {exc.strerror or exc}", target=str(path)) from exc


def confirm(action: str, what: str) -> None:
    """Asks on the terminal whether to do an action ("delete") to an object; without a terminal raises UsageError."""
    if not sys.stdin.isatty():
        raise UsageError(f"refusing to {action} {what} without confirmation", hint="add --yes")
    click.confirm(terminal_safe(f"{action} {what}?"), abort=True, err=True)
