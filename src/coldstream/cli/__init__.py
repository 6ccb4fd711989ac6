"""The command line: one module per command, each a thin layer over a library call.

A command's module is imported when the command runs or its help is shown, and imports the library only inside its
function, so that `coldstream --help` is fast. Once loaded, `list` here is that command's module and not the builtin,
which this module therefore does not use.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from coldstream.cli.groups import Group
from coldstream.cli.output import OutputGoneError, echo, echo_json, guard_streams
from coldstream.cli.session import State, error_document, show_traceback
from coldstream.errors import CancelledError, ColdstreamError, DiskError, UsageError
from coldstream.package import __version__

# The sections of `coldstream --help`.
SECTIONS = {
    "Models": ("setup", "upload", "list", "verify", "download", "remove", "cache"),
    "Serve": ("serve", "load", "tune", "bundle", "shard", "timeline"),
    "Deploy": ("launch", "template", "cdn"),
    "Inspect": ("doctor", "cost", "bench", "demo"),
}
VERBS = tuple(verb for verbs in SECTIONS.values() for verb in verbs)

# Options that users of other tools try; here each is a variable, since a command line is visible to other users.
_SECRET_OPTIONS = {
    "--hf-token": "HF_TOKEN",
    "--token": "HF_TOKEN",
    "--access-key": "R2_ACCESS_KEY",
    "--secret-key": "R2_SECRET_KEY",
    "--session-token": "R2_SESSION_TOKEN",
}
_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}


class _Verbs(Group):
    """Imports the module of a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"coldstream.cli.{cmd_name}_command").command
        assert isinstance(command, click.Command)
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            commands = [(verb, self.get_command(ctx, verb)) for verb in verbs]
            with formatter.section(title):
                formatter.write_dl(
                    [(verb.ljust(8), command.get_short_help_str(80)) for verb, command in commands if command]
                )
        formatter.write_paragraph()
        formatter.write_text("--version shows the version; coldstream COMMAND --help explains a command.")

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command; errors of the operating system become errors of coldstream.

        Raises:
            ColdstreamError: As the command says.
        """
        try:
            return super().invoke(ctx)
        except (ColdstreamError, OutputGoneError):
            raise
        except (OSError, MemoryError, RuntimeError) as exc:
            if error := _system_error(exc):
                raise error from exc
            if isinstance(exc, BrokenPipeError):
                # click would exit without a message.
                raise RuntimeError("the peer closed a socket") from exc  # noqa: TRY004
            raise


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="coldstream")
def cli() -> None:
    """Copy models into an S3 or R2 bucket, and stream them from there into vLLM.

    \b
    coldstream demo                      see it work: no account, no GPU
    coldstream setup --write-env         configure and check a bucket
    coldstream upload Qwen/Qwen3-8B      copy a model from the Hub into it
    coldstream serve Qwen/Qwen3-8B       start vLLM with streamed weights
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the documented code."""
    guard_streams()
    state = State()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(
            args=[*arguments] if arguments is not None else None,
            prog_name="coldstream",
            standalone_mode=False,
            obj=state,
        )
        sys.stdout.flush()
    except ColdstreamError as exc:
        code = _fail(exc, state)
    except click.exceptions.NoArgsIsHelpError as exc:
        echo(exc.format_message(), err=True)
        code = 2
    except click.ClickException as exc:
        code = _fail(_usage_error(exc), state)
    except (KeyboardInterrupt, click.Abort):
        hint = f"{state.resume}; run the same command again to continue" if state.resume else None
        code = _fail(CancelledError("cancelled", hint=hint), state)
    except OutputGoneError:
        code = 0
    except Exception as exc:  # noqa: BLE001  # Python would print it with any secrets in its messages
        show_traceback(exc)
        message = f"internal error: {type(exc).__name__}: {exc}"
        state.explain(message, hint := "please report it with the lines above")
        code = _exit(error_document("internal", message, hint, 1), state)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(exc: ColdstreamError, state: State) -> int:
    return _exit(state.report(exc), state)


def _exit(document: dict[str, dict[str, int]], state: State) -> int:
    """Prints an error's document under `--json`; returns its exit code."""
    if state.json:
        # An error while writing would hide this one.
        with suppress(OSError):
            echo_json(document)
    return document["error"]["exit_code"]


def _usage_error(exc: click.ClickException) -> UsageError:
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    command = context.command_path if context else "coldstream"
    takes_vllm_flags = context is not None and any(param.name == "vllm_arguments" for param in context.command.params)
    if isinstance(exc, click.NoSuchOption) and (variable := _SECRET_OPTIONS.get(exc.option_name)):
        return UsageError(
            f"{exc.option_name} is not an option: every user of this machine can read a command line",
            hint=f"set {variable} in the environment or in .env",
        )
    if isinstance(exc, click.NoSuchOption) and takes_vllm_flags:
        # Click reads -tp as -t.
        flag = exc.option_name if exc.option_name.startswith("--") else "--tensor-parallel-size 2"
        hint = f"vLLM's flags follow `--`: {command} MODEL -- {flag} …   (coldstream's own: {command} --help)"
        return UsageError(_one_line(exc), hint=hint)
    return UsageError(_one_line(exc), hint=f"see: {command} --help")


def _one_line(exc: click.ClickException) -> str:
    """Returns click's message, which lists the choices of an option on lines of their own, on a single line."""
    return " ".join(exc.format_message().split())


def _system_error(exc: OSError | MemoryError | RuntimeError) -> ColdstreamError | None:
    """What the operating system refused, and how to allow it; None for an internal error."""
    from coldstream.machine.limits import limit_error

    if error := limit_error(exc, "run this command"):
        return error
    if isinstance(exc, MemoryError):
        return ColdstreamError("out of memory", hint="lower the limit of this command: --memory")
    if not isinstance(exc, OSError):
        return None
    try:
        os.getcwd()
    except OSError as gone:
        return DiskError(f"cannot use the working directory: {gone.strerror}", hint="change to another: cd /")
    if exc.errno in _DISK and isinstance(exc.filename, str | bytes):
        name = os.fsdecode(exc.filename)
        return DiskError(f"{name}: {exc.strerror}", hint=f"check its owner, mode and free space: ls -ld {name}; df -h")
    return None


def _interrupt(_number: int, _frame: object) -> None:
    # A second signal ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt
