# Two commands: `make demo` and `make test`. Each makes .venv from requirements.lock when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sgps-lock
SGPS_DATA ?=
DEMO_OUT ?= demo-out
PRETRAIN_OUT ?= pretrained

.PHONY: install demo test lint fast lock pretrain clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@if [ -f $(STAMP) ] && cmp -s requirements.lock $(STAMP); then \
	  echo "requirements.lock is unchanged"; \
	else \
	  echo "Making $(VENV) from requirements.lock (several GB: the science needs torch)"; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }; \
	  rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@cp requirements.lock $(STAMP)

demo: $(STAMP)
	$(BIN)/sgps demo --out $(DEMO_OUT) $(if $(SGPS_DATA),--data $(SGPS_DATA))

# Resumable: about an hour of one processor, a third of it training, the rest features and measurements.
pretrain: $(STAMP)
	@test -d "$(SGPS_DATA)" || { echo "name the folder with the image sets: make pretrain SGPS_DATA=FOLDER"; exit 1; }
	$(BIN)/sgps pretrain base --data $(SGPS_DATA) --out $(PRETRAIN_OUT)/base
	$(BIN)/sgps pretrain generator --data $(SGPS_DATA) --base $(PRETRAIN_OUT)/base --out $(PRETRAIN_OUT)/generator
	$(BIN)/sgps pretrain release --base $(PRETRAIN_OUT)/base --generator $(PRETRAIN_OUT)/generator/generator.safetensors --out $(PRETRAIN_OUT)/release

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fast: lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test: fast  # the slow ones mostly wait for each other's processes
	$(BIN)/python -m pytest -q -n 3 -m slow

lock:
	uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -o requirements.lock

clean:
	rm -rf $(VENV) $(DEMO_OUT)
