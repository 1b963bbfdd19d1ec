# `make demo` and `make test` do their whole set-up: they need Python (3.9; 3.10 for `make test`), a C++17 compiler, and
# pip's network. PyTorch, for `make test`, comes in whatever build pip finds; a CPU build is enough.

PHOTO ?= examples/street.png
VIDEO ?= out/demo.mp4

# What the CUDA kernels are built for: `native` is the GPU that is here, `off` builds none. Others are what CMake takes
# as architectures, such as CUDA=90-real or CUDA="87-real;120". Where there is nvcc and no GPU they are built for an
# H200, so that the tests see that they compile, but not for `make demo`, which would wait for nothing.
# A plain `pip install .` builds them for everything that edge4d supports.
gpu := $(shell nvidia-smi -L 2>/dev/null)
CUDA ?= $(if $(shell command -v nvcc 2>/dev/null),$(if $(gpu),native,90-real),off)
comma := ,
cmake_options = -DEDGE4D_CUDA=$(if $(filter off,$(1)),OFF,ON -DCMAKE_CUDA_ARCHITECTURES="$(1)")

DEMO := .venv-demo/bin
TEST := .venv-test/bin

# $(call python,MINOR): the first Python 3 of at least that minor version that can make virtual environments.
python = $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.10 python3.9,$(shell \
	$(name) -c 'import ensurepip, sys; sys.version_info[1] >= $(1) and print("$(name)")' 2>/dev/null)))

.PHONY: build demo test tables clean

# The native libraries, for running from the source: PYTHONPATH=src EDGE4D_LIBRARY=build/dev python -P …
build:
	cmake -S . -B build/dev -DCMAKE_BUILD_TYPE=Release $(call cmake_options,$(CUDA))
	cmake --build build/dev --parallel

demo: .venv-demo
	@echo "Installing into .venv-demo"
	@CMAKE_ARGS='$(call cmake_options,$(if $(gpu),$(CUDA),off))' $(DEMO)/pip install --quiet '.$(if $(gpu),[cuda])'
	$(DEMO)/edge4d generate $(PHOTO) --camera drive -o $(VIDEO)
	@echo "The video is $(abspath $(VIDEO))"

test: .venv-test
	@echo "Installing into .venv-test"
	@CMAKE_ARGS='$(call cmake_options,$(CUDA))' $(TEST)/pip install --quiet -c constraints.txt '.[$(if $(gpu),cuda$(comma))export,test]'
	$(TEST)/ruff check
	$(TEST)/ruff format --check
	$(TEST)/mypy
	$(TEST)/pytest

.venv-demo: minor = 9
.venv-test: minor = 10
.venv-demo .venv-test:
	@test -n "$(call python,$(minor))" || { echo "Needs Python 3.$(minor) or newer with the venv module." >&2; exit 1; }
	$(call python,$(minor)) -m venv $@

# The tables of README.md, from tests/benchmarks/results.
tables: .venv-test
	$(TEST)/python tests/benchmarks/tables.py

clean:
	rm -rf build out .venv-demo .venv-test
