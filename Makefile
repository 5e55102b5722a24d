PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test thorough lint docs notebooks bench interop clients oldest newest clean

# Installed once, and again when the requirements change; works offline afterwards.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The main job: fetch the default model, fit it, score it before and after, save, load, merge.
demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

# One thread a worker: two workers share two cores without treading on each other.
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# The cases too that a sample of their product stands for: every form compiled, sharded and on every architecture.
thorough: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --thorough

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# The pages and stubs that are written from the code, then the site, in site/. Notebooks are shown as they are stored.
docs: $(VENV)/installed-docs
	$(BIN)/python -m luthier.cli.docs
	$(BIN)/python -m luthier.cli.stubs
	$(BIN)/mkdocs build --strict --quiet

# Runs the notebooks on real weights and stores what they show.
notebooks: $(VENV)/installed-docs
	$(BIN)/python docs/run_notebooks.py

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# What adapters cost on this machine, beside the bare base and peft: some twenty minutes on two cores.
bench: $(VENV)/installed
	$(BIN)/python -m bench speed

# The other libraries, each in an environment of its own, answer anew with what we write and write their own folders
# into WORK (default build/interop); then the matrix of docs/interop.md is measured. Outside of CI: it downloads.
interop: $(VENV)/installed
	tests/interop/record.sh $(BIN)/python
	cd tests && PYTHONPATH=. ../$(BIN)/python -m support.matrix measure && PYTHONPATH=. ../$(BIN)/python -m support.matrix print

# LangChain, LiteLLM and lm-eval, each in an environment of its own, against a server; what they send is recorded for the
# suite (default build/clients). Outside of CI: it downloads.
clients: $(VENV)/installed
	tests/serving/clients/record.sh $(BIN)/python

# The suite with the lowest versions that pyproject.toml declares, and with the newest of the index (default build/edges).
# Outside of CI: it downloads, torch with its CUDA packages too. TESTS="tests/core tests/data" runs a part.
oldest newest:
	tests/edges.sh $@ $(TESTS)

clean:
	rm -rf $(VENV) runs build dist site
