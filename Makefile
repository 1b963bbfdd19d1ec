# `make demo` and `make test` do their whole set-up: they need Python (3.9; 3.10 for `make test`), a C++17 compiler, and
# pip's network. PyTorch, for `make test`, comes in whatever build pip finds; a CPU build is enough.

PHOTO ?= examples/street.png
VIDEO ?= out/demo.mp4

DEMO := .venv-demo/bin
TEST := .venv-test/bin

# $(call python,MINOR): the first Python 3 of at least that minor version that can make virtual environments.
python = $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.10 python3.9,$(shell \
	$(name) -c 'import ensurepip, sys; sys.version_info[1] >= $(1) and print("$(name)")' 2>/dev/null)))

.PHONY: build demo test tables clean

# The native library, for running from the source: PYTHONPATH=src EDGE4D_LIBRARY=build/dev python -P …
build:
	cmake -S . -B build/dev -DCMAKE_BUILD_TYPE=Release
	cmake --build build/dev --parallel

demo: .venv-demo
	@echo "Installing into .venv-demo"
	@$(DEMO)/pip install --quiet .
	$(DEMO)/edge4d generate $(PHOTO) --camera drive -o $(VIDEO)
	@echo "The video is $(abspath $(VIDEO))"

test: .venv-test
	@echo "Installing into .venv-test"
	@$(TEST)/pip install --quiet -c constraints.txt '.[export,test]'
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
