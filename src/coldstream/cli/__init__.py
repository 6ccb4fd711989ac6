"""The command line: one module per command, each a thin layer over a library call.

A command's module is imported when the command is run or explained, so that `coldstream --help` is fast.
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

from coldstream.cli.output import OutputGoneError, echo, echo_json, guard_streams
from coldstream.cli.session import State, error_document, show_traceback
from coldstream.cli.verbs import Group
from coldstream.errors import CancelledError, ColdstreamError, DiskError, UsageError
from coldstream.package import __version__

# The sections of `coldstream --help`, with the first line of each command's own help.
SECTIONS = {
    "Models": {
        "setup": "Check the configuration and the bucket; create a missing bucket.",
        "upload": "Copy models from the Hub or from local folders into the bucket.",
        "list": "List the models in the bucket, their adapters and their state.",
        "verify": "Check that the bucket holds what was uploaded.",
        "download": "Download a model from the bucket into a folder, verified.",
        "remove": "Delete a model and its warm-start bundles from the bucket.",
        "cache": "List and prune this machine's local copies of models.",
    },
    "Serve": {
        "serve": "Serve a model with vLLM or SGLang, streaming its weights.",
        "load": "Stream a model into memory and report speed and bottleneck.",
        "tune": "Recommend settings for a model on a GPU; predict the load time.",
        "bundle": "List, publish and remove warm-start bundles (compile caches).",
        "shard": "Create and upload a checkpoint with one shard per rank.",
        "runtime": "Publish Python, vLLM and coldstream to the bucket, for bare nodes.",
        "timeline": "Show where start-up time went, for one start or several.",
    },
    "Deploy": {
        "launch": "Launch a model on rented GPUs through SkyPilot.",
        "template": "Generate a deployment file for SkyPilot, Kubernetes and others.",
        "cdn": "Configure, check, warm and purge the CDN in front of the bucket.",
    },
    "Inspect": {
        "doctor": "Diagnose the configuration, bucket, model and node, with fixes.",
        "cost": "Estimate the monthly cost, compared with S3, GCS and the Hub.",
        "bench": "Compare coldstream with other loaders on this machine.",
        "demo": "Show everything at work on this machine: no account, no GPU.",
    },
}
# These share a module; every other command has its own.
_STORED_MODELS = ("list", "verify", "download", "remove")
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
        module = "stored_models" if cmd_name in _STORED_MODELS else f"{cmd_name}_command"
        imported = importlib.import_module(f"coldstream.cli.{module}")
        command: click.Command = getattr(imported, "command", None) or getattr(imported, f"{cmd_name}_command")
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, summaries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(8), summary) for verb, summary in summaries.items()])
        formatter.write_paragraph()
        formatter.write_text("--version shows the version; coldstream COMMAND --help explains a command.")

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command; errors of the operating system become errors of coldstream."""
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


@click.group(cls=_Verbs, epilog=None, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
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
        code = _exit(state.report(exc), state)
    except click.exceptions.NoArgsIsHelpError as exc:
        echo(exc.format_message(), err=True)
        code = 2
    except click.ClickException as exc:
        code = _exit(state.report(_usage_error(exc)), state)
    except (KeyboardInterrupt, click.Abort):
        hint = f"{state.resume}; run the same command again to continue" if state.resume else None
        code = _exit(state.report(CancelledError("cancelled", hint=hint)), state)
    except OutputGoneError:
        code = 0
    except Exception as exc:  # noqa: BLE001  # Python would print it with any secrets in its messages
        show_traceback(exc)
        message = f"internal error: {type(exc).__name__}: {exc}"
        state.explain(message, hint := "please report it with the lines above")
        code = _exit(error_document("internal", message, hint, 1), state)
    sys.exit(code if isinstance(code, int) else 0)


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
    # click lists the choices of an option on lines of their own.
    message, hint = " ".join(exc.format_message().split()), f"see: {command} --help"
    if isinstance(exc, click.NoSuchOption) and (variable := _SECRET_OPTIONS.get(exc.option_name)):
        message = f"{exc.option_name} is not an option: every user of this machine can read a command line"
        hint = f"set {variable} in the environment or in .env"
    elif isinstance(exc, click.NoSuchOption) and any(
        param.name in {"vllm_arguments", "engine_arguments"} for param in (context.command.params if context else ())
    ):
        # Click reads -tp as -t.
        flag = exc.option_name if exc.option_name.startswith("--") else "--tensor-parallel-size 2"
        hint = f"the engine's flags follow `--`: {command} MODEL -- {flag} …   (coldstream's own: {command} --help)"
    return UsageError(message, hint=hint)


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
