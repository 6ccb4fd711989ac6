"""SkyPilot, run as a separate program: it pins many packages, so it is never imported, and never a dependency.

Its output is meant for people. Only these parts are read: the table of machines with its chosen row, a few lines that
show how far a launch has come, and JSON where it has that. A line that is not understood costs a detail, not a launch.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from coldstream.errors import ColdstreamError, NotFoundError, UnavailableError, UsageError
from coldstream.machine.child_environment import child_environment
from coldstream.settings import REGIONS, Settings

TESTED = "0.14.1"
INSTALL = f'uv tool install "skypilot[aws]=={TESTED}"'
# For short commands; the first one starts SkyPilot's server.
_ASK_SECONDS = 180.0
_END_SECONDS = 15.0
_OUTPUT_BYTES_MAX = 32 << 20
# SkyPilot's own limit for clusters; clouds append a hash to the name.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLUMNS = ["INFRA", "INSTANCE", "vCPUs", "Mem(GB)", "GPUS", "COST ($)"]
_EMPTY_LIST = re.compile(r"No live services|No in-progress managed jobs")
_NOT_FOUND = re.compile(r"Cluster\(s\) not found|does not exist")
# SkyPilot 0.14 exits with 0 after these.
_NOT_DONE = re.compile(r"Cluster\(s\) failed|Skipping its termination|Multiple running jobs found")
# The AWS credentials that SkyPilot may rent machines with.
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AWS = (*_AWS_KEYS, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
# SkyPilot's API server (sky/server/common.py).
_SERVER_PORT = "SKYPILOT_API_SERVER_LOCAL_PORT"
_SERVER_PORT_DEFAULT = 46580
_SERVER_CONNECT_SECONDS = 2.0
_SERVER_USER = "skypilot-system"
_PIPED: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A machine that SkyPilot offers, at a place such as "AWS (us-east-1a)"; None for a value that it did not print."""

    infra: str
    instance: str
    cores: int | None
    memory_gib: float | None
    dollars_per_hour: float | None

    @property
    def cloud(self) -> str:
        """In lower case: "aws"."""
        return self.infra.partition(" ")[0].partition("/")[0].lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyOutput:
    """The exit code and the output of a run, without colours."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        """The last line with an error, or else with anything, cut to 300 characters."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip() and not line.startswith("Hint")]
        errors = [line for line in lines if re.search(r"\b\w*(?:Error|Exception|NotUp|DoesNotExist)\b:", line)]
        return re.sub(r"^(?:[a-z_]+\.)+(?=[A-Z])", "", (errors or lines or ["it printed nothing"])[-1])[:300]

    @property
    def is_empty_list(self) -> bool:
        """Whether there are no services or no jobs, which SkyPilot may report as an error."""
        return _EMPTY_LIST.search(self.text) is not None

    @property
    def has_left_it_running(self) -> bool:
        """Whether something still exists after the command that was to end it."""
        is_gone = self.code == 0 or self.is_empty_list or _NOT_FOUND.search(self.text) is not None
        return _NOT_DONE.search(self.text) is not None or not is_gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """The `sky` program, and the variables that it runs with, which contain secrets: see `environment_for`."""

    path: str
    version: str
    environment: Mapping[str, str] = field(repr=False)

    def with_secrets(self, settings: Settings, secrets: Mapping[str, str]) -> Sky:
        return replace(self, environment=environment_for(settings, os.environ, secrets))

    def ask(self, *arguments: str, seconds: float = _ASK_SECONDS) -> SkyOutput:
        """Runs a command and reads its output. Raises UnavailableError if it does not end in time."""
        try:
            done = subprocess.run(
                [self.path, *arguments], env={**self.environment}, timeout=seconds, check=False, **_PIPED
            )
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(
                f"sky {arguments[0]} timed out after {seconds:.0f} s", hint="check its server: sky api status"
            ) from exc
        return SkyOutput(code=done.returncode, text=plain(done.stdout[-_OUTPUT_BYTES_MAX:].decode("utf-8", "replace")))

    def follow(self, *arguments: str, on_line: Callable[[str], None]) -> SkyOutput:
        """Runs a command to its end, however long that takes, and passes on each line.

        An interrupt ends the command as Ctrl-C would; what it has requested of SkyPilot's server may continue there.
        """
        lines: list[str] = []
        with subprocess.Popen([self.path, *arguments], env={**self.environment}, **_PIPED) as process:
            try:
                for raw in process.stdout or ():
                    # A spinner redraws its line; only the last text remains visible.
                    line = plain(raw.decode("utf-8", "replace")).rstrip().rpartition("\r")[2]
                    if line:
                        lines.append(line)
                        on_line(line)
            except BaseException:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        return SkyOutput(code=process.returncode, text="\n".join(lines))

    def pass_through(self, *arguments: str) -> int:
        """Runs a command on our own terminal; returns its exit code."""
        return subprocess.run([self.path, *arguments], env={**self.environment}, check=False).returncode

    def document(self, *arguments: str) -> Any:
        """Runs a command with JSON output. Raises ColdstreamError if it fails or prints no JSON."""
        output = self.ask(*arguments, "-o", "json")
        # Remarks come before or after the JSON, and may begin with a bracket too.
        for start in re.finditer(r"^[\[{]", output.text, re.MULTILINE) if output.code == 0 else ():
            with suppress(ValueError, RecursionError):
                return json.JSONDecoder().raw_decode(output.text, start.start())[0]
        if output.is_empty_list:
            return []
        raise ColdstreamError(f"sky {arguments[0]} failed: {output.last_line}", hint="try it: sky check")


def find_sky(settings: Settings, *, named: str | None = None) -> Sky:
    """Finds the program at `named`, or `sky` on the PATH. Raises NotFoundError, or UsageError for another program."""
    path = shutil.which(named or "sky")
    if path is None:
        raise NotFoundError(
            f"{named} is not a program" if named else "SkyPilot is not installed: `sky` is not on the PATH",
            hint=f"install it in its own environment: {INSTALL}",
        )
    # The version needs no keys.
    sky = Sky(path=path, version="", environment=child_environment())
    try:
        output = sky.ask("--version")
    except OSError as exc:
        # A script without its first line, or for another kind of machine.
        output = SkyOutput(code=1, text=exc.strerror or "")
    match = re.search(r"skypilot[^0-9]*(\d+\.\d+[^\s,]*)", output.text, re.IGNORECASE)
    if output.code != 0 or match is None:
        raise UsageError(
            f"{path} is not SkyPilot, or does not run: {output.last_line}",
            hint=f"install it in its own environment: {INSTALL}",
        )
    return replace(sky, version=match[1]).with_secrets(settings, {})


def environment_for(settings: Settings, environ: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """The variables that SkyPilot runs with: those of `environ`, and the secrets for the nodes.

    Our own keys are left out, because its server outlives the command. So are AWS variables that belong to the bucket:
    SkyPilot would look for machines there. SkyPilot rejects a secret that is not set, but not an empty one.
    """
    drop: set[str] = set()
    bucket = settings.endpoint()
    if bucket is not None:
        drop = {name for name in _AWS_ENDPOINTS if _host(environ.get(name)) == _host(bucket)}
        drop |= {name for name in REGIONS if environ.get(name) == "auto"}
        if settings.get("R2_ACCESS_KEY") is None:
            drop |= {*_AWS_KEYS}
    kept = child_environment(keep=_AWS, environ=environ)
    return {name: value for name, value in kept.items() if name not in drop} | {**secrets}


@contextmanager
def temporary_server(sky: Sky) -> Iterator[Callable[[], object]]:
    """Stops SkyPilot's server on this machine at the end, if it was started within the block and has no other users.

    Every command of SkyPilot's starts a server if none runs, and none stops it. Yields a function that keeps it.
    """
    with ExitStack() as stack:
        if not _is_server_running(sky):
            stack.callback(_stop_unused_server, sky)
        yield stack.pop_all


def _stop_unused_server(sky: Sky) -> None:
    with suppress(ColdstreamError, OSError):
        # Our requests have ended: others are another user's, or the server's own, which never end.
        if _is_server_running(sky) and all(row.get("user_id") == _SERVER_USER for row in sky.document("api", "status")):
            sky.ask("api", "stop")


def _is_server_running(sky: Sky) -> bool:
    try:
        port = int(sky.environment.get(_SERVER_PORT) or _SERVER_PORT_DEFAULT)
        with socket.create_connection(("127.0.0.1", port), timeout=_SERVER_CONNECT_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def parse_offers(text: str) -> list[Offer]:
    """Parses the machines in SkyPilot's table, the chosen one first; empty if there is no table that is understood."""
    chosen: list[Offer] = []
    others: list[Offer] = []
    inside = False
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[:6] == _COLUMNS:
            inside = True
        elif not line.strip():
            inside = False
        elif inside and len(cells) >= 6:
            cores = _number(cells[2])
            offer = Offer(
                infra=cells[0],
                instance=cells[1].removesuffix("[Spot]"),
                cores=None if cores is None else int(cores),
                memory_gib=_number(cells[3]),
                dollars_per_hour=_number(cells[5]),
            )
            # The column after the price marks the chosen machine.
            (chosen if len(cells) > 6 else others).append(offer)
    return chosen + others


def launch_refusal(text: str, *, spot: bool) -> ColdstreamError:
    """The reason why SkyPilot will not launch, from the output of its dry run."""
    if match := re.search(r"requires (\S+) which is not enabled", text):
        cloud = match[1].strip("'\"[],.")
        return UsageError(f"{cloud} is not enabled in SkyPilot", hint=f"show what it needs: sky check {cloud}")
    if "No cloud is enabled" in text or "Cloud access is not set up" in text:
        return UsageError("no cloud is enabled in SkyPilot", hint="show what each needs: sky check")
    if match := re.search(r"`?(\w+)`? is required .* (?:it is )?not installed", text):
        hint = f"for example: apt install {match[1]}"
        return NotFoundError(f"SkyPilot needs {match[1]}, which is not installed", hint=hint)
    if "does not contain any instances" in text or "No resource satisfying" in text:
        kind = "spot machine" if spot else "machine"
        hint = "show what clouds offer: sky gpus list; and: sky check"
        return UsageError(f"no enabled cloud offers such a {kind}", hint=hint)
    return ColdstreamError(f"sky refused: {SkyOutput(code=1, text=text).last_line}", hint="try: sky check")


def plain(text: str) -> str:
    """Text without colours and cursor movements."""
    return _COLOUR.sub("", text)


def _host(url: str | None) -> str | None:
    return urlsplit(url).netloc.lower() if url else None


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
