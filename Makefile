# Two commands do it: `make run` trains, evaluates and registers a model; `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Two processes, each with whole files, so that what a file's tests share is made once.
IN_PAIRS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-all test-fast check lock clean

# torch goes first and alone: where a CPU wheel lies ready it is taken, and nothing pulls gigabytes of CUDA.
.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 1>&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch 1>&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 1>&2
	@touch $@

run: .venv/.installed  ## the pipeline with the preset laptop; ARGS=--json, ARGS='--preset smoke' ...
	@$(BIN)/millrace run --preset laptop $(ARGS)

test: .venv/.installed
	@$(BIN)/python -m pytest $(IN_PAIRS)

test-all: .venv/.installed  ## what `test` samples in full, too: the resume grid, every other way of FSDP
	@$(BIN)/python -m pytest $(IN_PAIRS) -m ''

test-fast: .venv/.installed
	@$(BIN)/python -m pytest $(IN_PAIRS) -m 'not slow and not server'

check: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

lock: .venv/.installed  ## writes constraints.txt anew from what is installed
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf .venv workspace build *.egg-info
