"""SkyPilot, run as a program of its own: it pins much, so it is never imported, and never a dependency.

What it prints is for people. Of it are read: the table of machines with its chosen row, a few lines that tell how far a
launch has come, and JSON where it has that. A line that is not understood costs a detail, never a launch.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from coldstream.errors import ColdstreamError, NotFoundError, UnavailableError, UsageError
from coldstream.machine.child_environment import child_environment
from coldstream.settings import REGIONS, Settings

TESTED = "0.14.1"
INSTALL = f'uv tool install "skypilot[aws]=={TESTED}"'
# Short questions; the first one starts its server.
_ASK_SECONDS = 180.0
_END_SECONDS = 15.0
_OUTPUT_BYTES_MAX = 32 << 20
# SkyPilot's own bound for clusters; clouds' names are longer by a hash.
NAME_MAX = 40
NAME = re.compile(rf"[a-z]([a-z0-9-]{{0,{NAME_MAX - 2}}}[a-z0-9])?")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLUMNS = ("INFRA", "INSTANCE", "vCPUs", "Mem(GB)", "GPUS", "COST ($)", "CHOSEN")
# With which SkyPilot may rent machines at AWS.
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AWS = (*_AWS_KEYS, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A machine that SkyPilot found.

    Attributes:
        infra: Cloud and place, as it writes them: "AWS (us-east-1a)".
        instance: The cloud's name for the machine.
        cores: Virtual ones; None when it did not say.
        memory_gib: The same.
        dollars_per_hour: Of one machine; None when it did not say.
    """

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
class Answer:
    """A run that has ended.

    Attributes:
        code: Its exit code.
        text: What it printed, without colours.
    """

    code: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """The `sky` command.

    Attributes:
        path: Absolute.
        version: Of SkyPilot.
        environment: What it is run with; see `environment_for`. Holds secrets, and is not shown.
    """

    path: str
    version: str
    environment: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Sky({self.path}, {self.version})"

    def having(self, settings: Settings, secrets: Mapping[str, str]) -> Sky:
        """The same program, with what it hands to the nodes; see `environment_for`."""
        return replace(self, environment=environment_for(settings, os.environ, secrets))

    def ask(self, *arguments: str, seconds: float = _ASK_SECONDS) -> Answer:
        """Runs it and reads what it says.

        Raises:
            UnavailableError: It does not end in time.
        """
        try:
            done = subprocess.run(
                [self.path, *arguments],
                env={**self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(
                f"sky {arguments[0]} does not end in {seconds:.0f} s", hint="look at it with: sky api status"
            ) from exc
        return Answer(code=done.returncode, text=plain(done.stdout[-_OUTPUT_BYTES_MAX:].decode("utf-8", "replace")))

    def follow(self, *arguments: str, on_line: Callable[[str], None]) -> Answer:
        """Runs it to its end, however long that takes, and passes on each line as it comes.

        Interrupted, it is ended too, as Ctrl-C would; what it has asked its server to do may go on there.
        """
        lines: list[str] = []
        with subprocess.Popen(
            [self.path, *arguments],
            env={**self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            try:
                for raw in process.stdout:
                    # A spinner redraws its line; what stands last is what it says.
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
        return Answer(code=process.returncode, text="\n".join(lines))

    def pass_through(self, *arguments: str) -> int:
        """Runs it on our own terminal; returns its exit code."""
        return subprocess.run([self.path, *arguments], env={**self.environment}, check=False).returncode

    def document(self, *arguments: str) -> Any:
        """Runs a command that answers in JSON.

        Raises:
            ColdstreamError: It fails, or says something else.
        """
        answer = self.ask(*arguments, "-o", "json")
        # Its remarks stand before or after, and may begin with a bracket too.
        for start in re.finditer(r"^[\[{]", answer.text, re.MULTILINE) if answer.code == 0 else ():
            with suppress(ValueError, RecursionError):
                return json.JSONDecoder().raw_decode(answer.text[start.start() :])[0]
        raise ColdstreamError(f"sky {arguments[0]} failed: {last_line(answer.text)}", hint="try it: sky check")


def find_sky(settings: Settings, *, named: str | None = None) -> Sky:
    """SkyPilot, as it is installed.

    Args:
        settings: Whose keys it does not need to see.
        named: A path; otherwise `sky` on the PATH.

    Raises:
        NotFoundError: It is not installed.
        UsageError: The program is something else.
    """
    path = shutil.which(named or "sky")
    if path is None:
        raise NotFoundError(
            f"{named} is no program" if named else "SkyPilot is not installed: there is no `sky` on the PATH",
            hint=f"install it in an environment of its own: {INSTALL}",
        )
    # To say its version it needs no key.
    found = Sky(path=path, version="", environment=child_environment())
    try:
        answer = found.ask("--version")
    except OSError as exc:
        # A script without its first line, or for another machine.
        answer = Answer(code=1, text=exc.strerror or "")
    match = re.search(r"skypilot[^0-9]*(\d+\.\d+[^\s,]*)", answer.text, re.IGNORECASE)
    if answer.code != 0 or match is None:
        raise UsageError(
            f"{path} is not SkyPilot, or does not run: {last_line(answer.text)}",
            hint=f"install it in an environment of its own: {INSTALL}",
        )
    return Sky(path=path, version=match[1], environment=environment_for(settings, os.environ, {}))


def environment_for(settings: Settings, environ: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """What SkyPilot is run with.

    Our own keys are left out, since its server outlives the command. So are AWS variables that mean the bucket: it
    would look for machines there.

    Args:
        settings: Where the bucket is.
        environ: Our environment.
        secrets: For the nodes, by name; an empty one must be set, too.
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


def parse_offers(text: str) -> list[Offer]:
    """The machines in SkyPilot's table, the chosen one first; empty when there is no table that is understood."""
    found: list[tuple[bool, Offer]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"\s{2,}", line.strip())]
        if cells[: len(_COLUMNS) - 1] == [*_COLUMNS[:-1]]:
            inside = True
        elif inside and not line.strip():
            inside = False
        elif inside and len(cells) >= len(_COLUMNS) - 1:
            infra, instance, cores, memory, _, cost = cells[: len(_COLUMNS) - 1]
            offer = Offer(
                infra=infra,
                instance=instance.removesuffix("[Spot]"),
                cores=int(number) if (number := _number(cores)) is not None else None,
                memory_gib=_number(memory),
                dollars_per_hour=_number(cost),
            )
            found.append((len(cells) >= len(_COLUMNS), offer))
    return [offer for _, offer in sorted(found, key=lambda pair: not pair[0])]


def refusal(text: str, *, spot: bool) -> ColdstreamError:
    """Why SkyPilot will not launch, from what its dry run said."""
    if match := re.search(r"requires (\S+) which is not enabled", text):
        cloud = match[1].strip("'\"[],.")
        return UsageError(f"{cloud} is not enabled in SkyPilot", hint=f"see what it needs: sky check {cloud}")
    if "No cloud is enabled" in text or "Cloud access is not set up" in text:
        return UsageError("no cloud is enabled in SkyPilot", hint="see what each needs: sky check")
    if match := re.search(r"`?(\w+)`? is required .* (?:it is )?not installed", text):
        return NotFoundError(
            f"SkyPilot needs {match[1]}, which is not installed", hint=f"for example: apt install {match[1]}"
        )
    if "does not contain any instances" in text or "No resource satisfying" in text:
        kind = "spot machine" if spot else "machine"
        return UsageError(
            f"no cloud that is enabled offers such a {kind}", hint="see what there is: sky gpus list; and: sky check"
        )
    return ColdstreamError(f"sky refuses: {last_line(text)}", hint="try what it says, or: sky check")


def plain(text: str) -> str:
    """Text without colours and cursor movements."""
    return _COLOUR.sub("", text)


def last_line(text: str) -> str:
    """The last line that says something, cut to a sensible length."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Hint")]
    errors = [line for line in lines if re.search(r"\b\w*(?:Error|Exception|NotUp|DoesNotExist)\b:", line)]
    return re.sub(r"^(?:[a-z_]+\.)+(?=[A-Z])", "", (errors or lines or ["it says nothing"])[-1])[:300]


def _host(url: str | None) -> str | None:
    return urlsplit(url).netloc.lower() if url else None


def _number(text: str) -> float | None:
    try:
        found = float(text.replace(",", ""))
    except ValueError:
        return None
    return found if math.isfinite(found) else None
