"""A stand-in for vLLM in a runtime: the distribution `vllm`, whose command reads the weights and answers at once.

It asks the streamer for the weights as vLLM's ranks do, reads every tensor, says what it has read, and serves the part
of the API that is asked for: with the key, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from coldstream.fleet.deploy_options import VLLM_VERSION

_MAIN = '''\
"""Stands in for vLLM: reads the weights, and answers."""
import hashlib, hmac, http.server, json, os, pathlib, sys

import coldstream
from coldstream.node.model_folder import read_note
from coldstream.node.load_service import FIRST, VARIABLE, ask


def flag(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def read_weights(folder):
    note = read_note(pathlib.Path(folder))
    address = ask(os.environ[VARIABLE], note.uri, FIRST, consumers=1)
    found = {}
    for name, tensor in coldstream.attach(address, framework="buffer"):
        found[name] = hashlib.sha256(bytes(tensor.data)).hexdigest()
    text = json.dumps(found, sort_keys=True)
    print("STAND-IN weights", len(found), hashlib.sha256(text.encode()).hexdigest(), flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/health":
            self.answer(200, {})
        elif not self.has_key():
            self.answer(401, {"error": "Unauthorized"})
        elif path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": flag("--served-model-name"), "object": "model"}]})
        else:
            self.answer(404, {})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.has_key():
            self.answer(401, {"error": "Unauthorized"})
        else:
            self.answer(200, {"choices": [{"index": 0, "text": " river", "message": {"content": " river"}}]})

    def has_key(self):
        wanted = "Bearer " + os.environ["VLLM_API_KEY"]
        return hmac.compare_digest(self.headers.get("Authorization", ""), wanted)

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    assert sys.argv[1] == "serve", sys.argv
    assert flag("--load-format") == "coldstream", sys.argv
    assert flag("--tensor-parallel-size", "1") == "1", sys.argv
    assert os.environ["VLLM_API_KEY"], "nothing answers without a key"
    keys = [name for name in ("R2_ACCESS_KEY", "R2_SECRET_KEY", "COLDSTREAM_BUNDLE_KEY") if name in os.environ]
    print("STAND-IN bucket keys", keys, flush=True)
    say = lambda text: print(f"(Worker pid=3) INFO 11-24 10:26:30 {text}", flush=True)
    say("[cpu_model_runner.py:68] Starting to load model /m...")
    read_weights(sys.argv[2])
    say("[default_loader.py:501] Loading weights took 0.11 seconds")
    say("[entry.py:140] Starting vLLM server on http://127.0.0.1:8000")
    address = (flag("--host", "127.0.0.1"), int(flag("--port", "8000")))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()
'''
_SCRIPT = "from vllm.entrypoints.cli.main import main\n\nif __name__ == '__main__':\n    main()\n"


def make_environment(environment: Path, checkout: Path) -> None:
    """Makes a virtual environment with coldstream from a checkout and the stand-in, unless it is there.

    Raises:
        subprocess.CalledProcessError: It cannot be made here.
    """
    python = environment / "bin/python"
    if not (environment / "bin/coldstream").exists():
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        for argv in ([sys.executable, "-m", "venv", environment], [python, *pip, "--editable", f"{checkout}[tls]"]):
            subprocess.run(argv, check=True)
    site = next((environment / "lib").glob("python3.*/site-packages"))
    for package in ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli"):
        (site / package / "__pycache__").mkdir(parents=True, exist_ok=True)
        (site / package / "__init__.py").touch()
    (site / "vllm/entrypoints/cli/main.py").write_text(_MAIN)
    about = site / f"vllm-{VLLM_VERSION}.dist-info"
    about.mkdir(exist_ok=True)
    # Installers count it as vLLM, of the version that the templates ask for.
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}\nProvides-Extra: runai\n"
    )
    (about / "INSTALLER").write_text("tests\n")
    (about / "RECORD").write_text("")
    program = environment / "bin/vllm"
    program.write_text(f"#!{python}\n{_SCRIPT}")
    program.chmod(0o755)


def told(tensors: Mapping[str, bytes]) -> str:
    """What it says when it has read these tensors."""
    found = {name: hashlib.sha256(content).hexdigest() for name, content in tensors.items()}
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return f"STAND-IN weights {len(found)} {digest}"
