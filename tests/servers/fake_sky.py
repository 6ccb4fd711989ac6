"""A `sky` that brings up a process on loopback, for tests of what is around SkyPilot: it says what 0.14.1 says.

It keeps what it was run with: arguments, the names of the environment's variables, and of secrets only their SHA-256.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = r'''import hashlib, http.server, json, os, signal, socket, subprocess, sys, threading, time

LINE = "-" * 83
# SkyPilot fills its columns up, the last one too.
TABLE = f"""Considered resources (1 node):
{LINE}
 INFRA              INSTANCE          vCPUs   Mem(GB)   GPUS   COST ($)   CHOSEN   {""}
{LINE}
 AWS (us-west-2b)   g6.2xlarge[Spot]  8       32        L4:1   0.35                {""}
 AWS (us-east-1a)   g6.xlarge[Spot]   4       16        L4:1   0.30       \x1b[32m   \u2714\x1b[0m     {""}
{LINE}
Dryrun finished.
"""
DRY = {
    "not-enabled": "sky.exceptions.ResourcesUnavailableError: Task requires gcp which is not enabled. To enable access,"
        " change the task cloud requirement or run: \x1b[1msky check gcp\x1b[0m",
    "no-clouds": "sky.exceptions.NoCloudAccessError: Cloud access is not set up. Run: \x1b[1msky check\x1b[0m",
    "no-gpu": "No resource satisfying <Cloud>([Spot], {'H200': 8}, ports=['8000']) on AWS.\n"
        "sky.exceptions.ResourcesUnavailableError: Catalog does not contain any instances satisfying the request: "
        "1x <Cloud>([Spot], {'H200': 8}, ports=['8000']).\nTo fix: relax or change the resource requirements.\n\n"
        "Hint: \x1b[1msky gpus list\x1b[0m to list available accelerators.\nHint: Check Per Resource Hint\n      ",
    "no-rsync": "RuntimeError: `rsync` is required for provisioning and it is not installed. For Debian/Ubuntu system, "
        "install it with:\n  $ sudo apt install rsync",
}
given, modes = sys.argv[1:], (HERE / "mode").read_text().split()
state_file = HERE / "state.json"
state = json.loads(state_file.read_text()) if state_file.exists() else {}

def say(text): print(text, flush=True)

def end(text="", code=0):
    if text:
        say(text)
    sys.exit(code)

def answer(document):
    end(json.dumps(document, indent=2))

def keep():
    # At once: others run beside this one.
    written = HERE / f"state.{os.getpid()}"
    written.write_text(json.dumps(state))
    written.replace(state_file)

def serve(name):
    key = "another" if "other-key" in modes else os.environ["VLLM_API_KEY"]
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            right = self.headers["Authorization"] == f"Bearer {key}"
            known = self.path == "/v1/models"
            self.send_response(401 if not right else 200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": "m"}]} if right else {}).encode())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Nobody may be left to end it.
    threading.Timer(120, os._exit, [0]).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()

def start(name, **more):
    stop(name)
    found = {**state.get(name, {}), "kind": kind, "status": "UP", "job": "RUNNING", "number": 1, **more}
    if not {"setup-fails", "never"} & {*modes} and kind != "job":
        # It keeps none of this process's descriptors open, because a reader of our output would wait for its end.
        null = subprocess.DEVNULL
        command = [sys.argv[0], "_serve", name]
        child = subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null, start_new_session=True)
        found |= {"pid": child.pid, "port": int(child.stdout.readline())}
        (HERE / f"{name}.pid").write_text(str(child.pid))
    if "setup-fails" in modes:
        found["job"] = "FAILED_SETUP"
    state[name] = found
    keep()

def stop(name):
    found = state.get(name, {})
    found.pop("port", None)
    if pid := found.pop("pid", None):
        os.kill(pid, signal.SIGKILL)
        (HERE / f"{name}.pid").unlink()

def of(kind): return {name: found for name, found in state.items() if found["kind"] == kind}

if given[:1] == ["_serve"]:
    serve(given[1])
if given == ["_api_server"]:
    listening = socket.create_server(("127.0.0.1", int(os.environ["SKYPILOT_API_SERVER_LOCAL_PORT"])))
    threading.Timer(120, os._exit, [0]).start()
    say("up")
    while True:
        listening.accept()[0].close()
if given == ["--version"]:
    with open(HERE / "versions", "a") as file:
        file.write("asked\n")
    end("skypilot, version 0.14.1")
secrets = [word for flag, word in zip(given, given[1:]) if flag == "--secret"]
row = {"argv": given, "names": sorted(os.environ),
       "secrets": {n: hashlib.sha256(os.environ[n].encode()).hexdigest() for n in secrets if n in os.environ}}
with open(HERE / "calls.jsonl", "a") as file:
    file.write(json.dumps(row) + "\n")
for name in secrets:
    if name not in os.environ:
        end(f"Usage: sky launch [OPTIONS] [ENTRYPOINT]...\n\nError: {name} is not set in local environment.", 2)

def value(flag): return given[given.index(flag) + 1]

kind = "service" if given[0] == "serve" else "job" if given[0] == "jobs" else "node"
verb = given[0] if kind == "node" else given[1]
if "silent" in modes and "--dryrun" not in given:
    end("sky.exceptions.ApiServerConnectionError: Could not connect to SkyPilot API server", 1)
if "server" in modes and given[0] != "api" and not (HERE / "server.pid").exists():
    null = subprocess.DEVNULL
    child = subprocess.Popen([sys.argv[0], "_api_server"], stdin=null, stdout=subprocess.PIPE, stderr=null,
                             start_new_session=True)
    child.stdout.readline()
    (HERE / "server.pid").write_text(str(child.pid))
if given[:2] == ["api", "status"]:
    own = {"request_id": "skypilot-status-refresh-daemon", "user_id": "skypilot-system", "status": "PENDING"}
    answer([own, {"request_id": "5f1a", "user_id": "a1b2c3", "status": "RUNNING"}] if "busy" in modes else [own])
if given[:2] == ["api", "stop"]:
    os.kill(int((HERE / "server.pid").read_text()), signal.SIGKILL)
    (HERE / "server.pid").unlink()
    end("SkyPilot API server stopped.")
if "--dryrun" in given:
    file = next(word for word in given if word.endswith(".yaml"))
    say(f"YAML to run: {file}\nRunning on cluster: sky-2c92-root")
    say("\x1b[33mLaunching a spot job that does not automatically recover from preemptions. To get automatic "
        "recovery, use managed job instead: \x1b[0m\x1b[1msky jobs launch\x1b[0m.")
    for mode, text in DRY.items():
        if mode in modes:
            end(text, 1)
    on_demand = "use_spot: false" in open(file).read()
    if on_demand and "spot-alone" in modes:
        end(DRY["no-gpu"], 1)
    if on_demand:
        TABLE = TABLE.replace("[Spot]", "      ").replace("0.35", "0.98").replace("0.30", "0.80")
    end("INFRA | INSTANCE\n-- nan --" if "garbage" in modes else TABLE)
if verb in {"launch", "up"}:
    name = value("-c" if kind == "node" else "-n")
    if kind == "service":
        say(f"Service from YAML spec: f\n\x1b[33mLaunching controller for '{name}'...\x1b[0m")
    if "nothing" in modes:
        end("sky.exceptions.ResourcesUnavailableError: Failed to acquire resources in all zones in us-east-1.", 1)
    say("\r\x1b[2K\u2699\ufe0e Launching on AWS us-east-1\x1b[0m (us-east-1a).")
    if {"half-way", "slow"} & {*modes}:
        state[name] = {"kind": kind, "status": "INIT", "job": None}
        keep()
    if "half-way" in modes:
        say("\u2514\u2500\u2500 Instance is up.")
        end("sky.exceptions.CommandError: Command rsync failed with return code 255.", 1)
    if "slow" in modes:
        signal.signal(signal.SIGINT, lambda *_: end("Request will continue running asynchronously.", 130))
        (HERE / "slow").touch()
        time.sleep(100)
    say("\u2514\u2500\u2500 Instance is up.")
    say(f"\u2713 Cluster launched: '{name}'.  View logs: sky logs --provision {name}")
    say("\u2699\ufe0e Syncing files.\n\u2713 Setup detached.")
    start(name, status="REPLICA_INIT" if kind == "service" else "UP", number=7 if kind == "job" else 1)
    if kind == "service":
        say(f"\x1b[36mService name: \x1b[1m{name}\x1b[0m\n\x1b[36mEndpoint URL: \x1b[1mhttp://127.0.0.1\x1b[0m")
        end("\u2713 Service is spinning up and replicas will be ready shortly.")
    number = state[name]["number"]
    end(f"\u2699\ufe0e Job submitted, ID: {number}\n\U0001f4cb Useful Commands\nJob ID: {number}")
if verb == "update":
    start(given[3])
    end(f"\u2713 Service '{given[3]}' update scheduled.")
if verb == "cancel":
    named = [name for name, found in of(kind).items() if given[-1] in {name, str(found["number"])}]
    name = named[0] if named else ""
    stop(name)
    if kind == "job" and state.pop(name, None) is None:
        end("sky.exceptions.ClusterNotUpError: No in-progress managed jobs.", 1)
    keep()
    end("Jobs cancelled.")
if verb == "down":
    name = given[-1]
    if "down-fails" in modes:
        end(f"Terminating cluster {name}...failed. (UnauthorizedOperation)\n"
            f"  \u2717 Failed: {name} (UnauthorizedOperation)\nCluster(s) failed. See details above.")
    if name not in of(kind):
        if kind == "service":
            end("sky.exceptions.ClusterNotUpError: No live services.", 1)
        end("Cluster(s) not found (tip: see `sky status`).")
    stop(name)
    del state[name]
    keep()
    end(f"Terminating cluster {name}...done.")
if verb == "status" and "--endpoint" in given:
    found = of(kind).get(given[-1])
    if found is None or "port" not in found:
        end("-" if kind == "service" else f"ValueError: {given[-1]!r} cluster not found.", int(kind == "node"))
    end(f"{'http://' if kind == 'service' else ''}127.0.0.1:{found['port']}")
if verb == "status" and kind == "service":
    say("Services")
    if not of("service"):
        end("No live services.")
    say("NAME  VERSION  UPTIME  STATUS        REPLICAS  ENDPOINT")
    for name, found in of("service").items():
        say(f"{name}  1  1m 2s  \x1b[34m{found['status']}\x1b[0m  0/1  http://127.0.0.1:{found.get('port')}")
    end("\n\x1b[36mService Replicas\x1b[0m\nSERVICE_NAME  ID  STATUS\nother  1  FAILED")
if verb == "status" and "-o" not in given:
    end(f"Clusters\nNAME  STATUS\n{given[-1]}  UP")
if verb == "status" and "--refresh" in given and "taken-back" in modes:
    # The cloud has it once more, and then no more.
    found = state.get(given[given.index("--refresh") + 1], {})
    if found.pop("seen", False):
        stop(found["name"])
        del state[found["name"]]
    elif found:
        found |= {"seen": True, "name": given[given.index("--refresh") + 1]}
    keep()
if verb == "status":
    answer([{"name": name, "status": found["status"], "autostop": 30} for name, found in of("node").items()])
if verb == "queue" and kind == "node":
    found = state.get(given[1])
    rows = [{"job_id": found["number"], "job_name": given[1], "status": found["job"]}] if found else []
    say(f"Fetching job queue for: {given[1]}")
    answer({given[1]: rows} if found else {})
if verb == "queue":
    if not of("job"):
        end("sky.exceptions.ClusterNotUpError: No in-progress managed jobs.", 1)
    rows = [{"job_id": s["number"], "job_name": name, "status": s["job"]} for name, s in of("job").items()]
    answer(rows)
if verb == "logs":
    say("\x1b[33mTailing logs of job 1...\x1b[0m")
    if "setup-fails" in modes:
        say("\x1b[36m(setup pid=70)\x1b[0m ERROR: Could not find a version that satisfies coldstream")
        end("ERROR: Job 1's setup failed.", 100)
    for line in (HERE / "log.txt").read_text().splitlines():
        say(f"\x1b[36m(m, pid=77)\x1b[0m {line}")
    end("Shared connection to 127.0.0.1 closed.")
end(f"the stand-in does not know: {given}", 99)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSky:
    """The stand-in.

    Attributes:
        folder: Its own, where what it keeps lies.
        program: Its path; its folder may be put on the PATH.
    """

    folder: Path
    program: Path

    def behave(self, *modes: str) -> None:
        """What goes wrong from now on: the words of the program's `modes`."""
        (self.folder / "mode").write_text(" ".join(modes))

    def calls(self, *verbs: str) -> list[dict[str, Any]]:
        """How it was run so far: "argv", "names" of variables, "secrets" as SHA-256; those that begin with `verbs`."""
        path = self.folder / "calls.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if tuple(row["argv"][: len(verbs)]) == verbs]

    def versions_asked(self) -> int:
        """How often it was asked for its version, which no other count holds."""
        path = self.folder / "versions"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def forget(self, name: str) -> None:
        """Lets something be gone that it launched, without a word."""
        path = self.folder / "state.json"
        known = json.loads(path.read_text())
        del known[name]
        path.write_text(json.dumps(known))

    def set_state(self, name: str, **state: Any) -> None:
        """Changes what it believes of something that it launched."""
        path = self.folder / "state.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known[name] = known.get(name, {"kind": "node", "status": "UP", "job": "RUNNING", "number": 1}) | state
        path.write_text(json.dumps(known))


@contextmanager
def fake_sky(folder: Path, log: Sequence[str]) -> Iterator[FakeSky]:
    """Writes one into a folder; what it has started ends with the context.

    Args:
        folder: A folder of its own.
        log: What a node says.
    """
    program = folder / "bin/sky"
    program.parent.mkdir(parents=True)
    # Without site-packages: it is run a dozen times in a test.
    program.write_text(f"#!{sys.executable} -IS\nimport pathlib\nHERE = pathlib.Path({str(folder)!r})\n{_PROGRAM}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "log.txt").write_text("\n".join(log))
    made = FakeSky(folder=folder, program=program)
    made.behave()
    try:
        yield made
    finally:
        for file in folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
