"""A `vllm` that starts at once, for tests of what is around it: it says vLLM's lines, fills its caches, and answers."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

_PROGRAM = """#!{python}
import http.server, json, os, pathlib, signal, sys

LINES, FAULT = {lines!r}, {fault!r}

def flag(name, default=None):
    if name in sys.argv:
        return sys.argv[sys.argv.index(name) + 1]
    lines = pathlib.Path(flag("--config")).read_text().splitlines() if name != "--config" and flag("--config") else ()
    return dict(("--" + line).split(": ") for line in lines).get(name, default)

compiled = pathlib.Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", {home!r} + "/inductor")) / "ab/kernel.so"
infos = pathlib.Path(os.environ.get("VLLM_CACHE_ROOT", {home!r} + "/vllm")) / "modelinfos/llama.json"
for line in LINES:
    print(line, flush=True)
for path in (compiled, infos):
    if not path.exists():
        print("BUILT", path, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"built " * 1000)
if "FAKE_VLLM_READS" in os.environ:
    import coldstream, coldstream.node.model_folder
    from coldstream.node.load_service import FIRST, VARIABLE, ask
    note = coldstream.node.model_folder.read_note(sys.argv[2])
    address = ask(os.environ[VARIABLE], note.uri, FIRST, consumers=1)
    read = sum(tensor.data.nbytes for _, tensor in coldstream.attach(address, framework="buffer"))
    print("READ", read, "of", note.uri, flush=True)
print("SECRETS", sorted(name for name in os.environ if "BUNDLE_KEY" in name), flush=True)

if FAULT == "swallows":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    signal.pause()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dead = False
    def log_message(self, *args): pass
    def do_GET(self):
        if Handler.dead:
            self.answer(503, b"")
            os._exit(0)
        self.answer(200 if self.path == "/health" else 404, b"")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "dies":
            print("(EngineCore pid=2) ERROR 11-24 10:27:02 [core.py:1] RuntimeError: illegal instruction", flush=True)
            Handler.dead = True
            return self.answer(500, b"")
        known = asked["model"] == flag("--served-model-name") and self.path == "/v1/completions"
        self.answer(200 if known else 404, json.dumps({{"choices": [{{"text": " river"}}]}}).encode())
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.ThreadingHTTPServer((flag("--host", "127.0.0.1"), int(flag("--port", "8000"))), Handler).serve_forever()
"""

# Of vLLM 0.32, shortened.
_LINES = (
    "(APIServer pid=1) INFO 11-24 10:26:10 [model.py:733] Resolved architecture: LlamaForCausalLM",
    "(EngineCore pid=2) INFO 11-24 10:26:20 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: ...",
    "(Worker pid=3) INFO 11-24 10:26:30 [cpu_model_runner.py:68] Starting to load model /m...",
    "(Worker pid=3) INFO 11-24 10:26:30 [base_loader.py:82] Initializing model took 0.147200 seconds",
    "(Worker pid=3) INFO 11-24 10:26:31 [default_loader.py:501] Loading weights took 0.11 seconds",
    "(EngineCore pid=2) INFO 11-24 10:27:01 [core.py:402] init engine (profile, create kv cache, warmup model) took 2s",
    "(APIServer pid=1) INFO 11-24 10:27:01 [entry.py:140] Starting vLLM server on http://127.0.0.1:8000",
)


def fake_lines(*, until: str) -> tuple[str, ...]:
    """Those up to the one that holds these words."""
    place = next(index for index, line in enumerate(_LINES) if until in line)
    return _LINES[: place + 1]


def fake_vllm(folder: Path, *, version: str = "0.32.0+cpu", fault: str = "") -> Path:
    """Writes one, with the folders of an environment around it; its program's path.

    Args:
        folder: Of the environment.
        version: Of vLLM.
        fault: "dies": of its first request, with exit code 0; "swallows": SIGTERM, and never answers.
    """
    site = folder / "lib/python3.11/site-packages"
    for name in ("vllm/__pycache__", f"vllm-{version}.dist-info", "torch-2.13.0+cpu.dist-info"):
        (site / name).mkdir(parents=True, exist_ok=True)
    program = folder / "bin/vllm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(_PROGRAM.format(python=sys.executable, lines=_LINES, home=str(folder), fault=fault))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program
