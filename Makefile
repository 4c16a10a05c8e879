# `make demo` and `make test` do their own set-up in .venv; a second call reuses it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test check lab clean-venv

demo: $(READY)
	$(BIN)/snakemake --workflow-profile profiles/demo
	@echo "Tables, figures and the report are in results/demo; open results/demo/report.html"

# One process for the runs of the whole pipeline (tests/conftest.py), one for all other files of tests.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# The lab preset on real faces; where they lie stands in paths.yaml (README).
lab: $(READY)
	$(BIN)/snakemake --workflow-profile profiles/lab

# Formatting, lint, and dry runs at the papers' scale: on this machine, and with the cluster's profile.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/snakemake --dry-run --quiet --cores all --resources gpu=1
	$(BIN)/snakemake --dry-run --quiet --workflow-profile profiles/slurm --executor dryrun

$(READY): pyproject.toml
	@case '$(CURDIR)' in *' '*) \
	  echo "Snakemake cannot run a Python whose path has a blank: move this folder from '$(CURDIR)'"; exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Holdfast needs Python 3.11 or 3.12; name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[workflow,test]'
	@touch $@

clean-venv:
	rm -rf $(VENV)
