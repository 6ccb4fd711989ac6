"""The command line: one module per verb, each a thin face of a library call.

Modules of verbs are imported when their verb is run or its help is shown, and import the library only inside their
function: `coldstream --help` costs what click costs. Once loaded, `list` here is the verb's module and no longer the
builtin, which this module therefore does not use.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from coldstream.cli.refusals import refusal_of
from coldstream.cli.session import EXIT_CODES, Group, State, echo, echo_json, error_document, show_traceback
from coldstream.cli.streams import OutputGoneError, guard_streams
from coldstream.errors import CancelledError, ColdstreamError, UsageError
from coldstream.package import __version__

VERBS = (
    "setup",
    "upload",
    "list",
    "verify",
    "download",
    "remove",
    "load",
    "bench",
    "tune",
    "cost",
    "template",
    "launch",
    "serve",
    "shard",
    "timeline",
    "bundle",
    "cdn",
    "cache",
    "doctor",
    "demo",
)

# What people type who know other tools; each is a setting here.
_SECRET_OPTIONS = {
    "--hf-token": "HF_TOKEN",
    "--token": "HF_TOKEN",
    "--access-key": "R2_ACCESS_KEY",
    "--secret-key": "R2_SECRET_KEY",
    "--session-token": "R2_SESSION_TOKEN",
}


class _Verbs(Group):
    """Loads a verb's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"coldstream.cli.{cmd_name}_command").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Runs a verb; what the machine refuses becomes an error of ours.

        Raises:
            ColdstreamError: As the verb says.
        """
        try:
            return super().invoke(ctx)
        except (ColdstreamError, OutputGoneError):
            raise
        except (OSError, MemoryError, RuntimeError) as exc:
            if error := refusal_of(exc):
                raise error from exc
            if isinstance(exc, BrokenPipeError):
                # click would exit without a message.
                raise RuntimeError("a socket's other end has gone") from exc  # noqa: TRY004
            raise


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="coldstream")
def cli() -> None:
    """Copy models from Hugging Face into an S3-compatible bucket, verified, and stream them from there into memory.

    \b
    coldstream setup                        check the credentials, create the bucket, prove a round trip
    coldstream upload Qwen/Qwen3-8B         copy a model from the Hub into the bucket
    coldstream list                         see what is there
    coldstream serve Qwen/Qwen3-8B          start vLLM, with the weights streamed meanwhile
    coldstream launch Qwen/Qwen3-8B --gpus L4:1   the same on a rented spot GPU
    coldstream cost                         what a month of it costs, and elsewhere
    coldstream load Qwen/Qwen3-8B           stream it into memory, and see what sets the pace
    coldstream doctor Qwen/Qwen3-8B         what is wrong, and what mends it
    coldstream demo                         see it work with no account at all
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
        code = _failed(exc, state)
    except click.exceptions.NoArgsIsHelpError as exc:
        echo(exc.format_message(), err=True)
        code = 2
    except click.ClickException as exc:
        code = _misused(exc, state)
    except (KeyboardInterrupt, click.Abort):
        code = _cancelled(state)
    except OutputGoneError:
        code = 0
    except Exception as exc:  # noqa: BLE001  # Python would print it with whatever its messages hold
        code = _crashed(exc, state)
    sys.exit(code if isinstance(code, int) else 0)


def _crashed(exc: Exception, state: State) -> int:
    show_traceback(exc)
    message = f"internal error: {type(exc).__name__}: {exc}"
    state.explain(message, hint := "please report it with the lines above")
    if state.json:
        _show_error(error_document("internal", message, hint, 1))
    return 1


def _failed(exc: ColdstreamError, state: State) -> int:
    document = state.report(exc)
    if state.json:
        _show_error(document)
    return exc.exit_code


def _show_error(document: object) -> None:
    # That it cannot be written is not what went wrong.
    with suppress(OSError):
        echo_json(document)


def _misused(exc: click.ClickException, state: State) -> int:
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    command = context.command_path if context else "coldstream"
    hint = f"see: {command} --help"
    takes_vllm_flags = context is not None and any(param.name == "vllm_arguments" for param in context.command.params)
    message = exc.format_message()
    if isinstance(exc, click.NoSuchOption) and (variable := _SECRET_OPTIONS.get(exc.option_name)):
        message = f"{exc.option_name} is not an option: every user of this machine can read a command line"
        hint = f"set {variable} in the environment or in .env"
    elif isinstance(exc, click.NoSuchOption) and takes_vllm_flags:
        # Click reads -tp as -t.
        flag = exc.option_name if exc.option_name.startswith("--") else "--tensor-parallel-size 2"
        hint = f"vLLM's flags follow `--`: {command} MODEL -- {flag} …   (coldstream's own: {command} --help)"
    return _failed(UsageError(message, hint=hint), state)


def _cancelled(state: State) -> int:
    hint = f"{state.resume}; run the same command again to continue" if state.resume else None
    return _failed(CancelledError("cancelled", hint=hint), state)


def _interrupt(_number: int, _frame: object) -> None:
    # A second signal ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt
