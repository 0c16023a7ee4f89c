# Two commands do all the set-up and then their job: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 or newer), VENV the folder, ARGS is handed on. pip's own variables are honoured:
# PIP_EXTRA_INDEX_URL chooses the CPU build of torch where the default one would bring CUDA. The tests run in two
# processes, as most of their time goes into starting services; `make test ARGS="-n 0"` runs them in one.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test lint wheel clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/afresh demo $(ARGS)

test: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

wheel: $(VENV)/dev.stamp
	rm -rf dist
	$(VENV)/bin/python -m build --wheel

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is older than pyproject.toml or constraints.txt when the packages may no longer fit them.
define install
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); torch is large, so the first time takes minutes"
	$(PIP) -e '.[$(1)]'
endef

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(call install,broker)
	@touch $@

# The comma would end $(call)'s argument.
comma := ,
$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(call install,broker$(comma)parquet$(comma)dev)
	@touch $(VENV)/demo.stamp $@
