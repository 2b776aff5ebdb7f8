# Every target does its own set-up: Python 3.11+, make and git are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
FAULTS := $(or $(SSAT_FAULT_FOLDER),runs/faults)

.PHONY: demo results bench scale test test-slow cluster-test chaos manifests check format install clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q ssat_ray
	touch $@

demo: $(INSTALLED)  ## the ten rows on real digits, one seed
	$(BIN)/ssat run digits

results: $(INSTALLED)  ## three seeds and AutoAttack: the table of the README
	$(BIN)/ssat run digits --name results --set 'seeds=[0,1,2]' --set 'evaluate.autoattack_seeds=[0]' $(ARGS)
	@cat runs/results/results.md

bench: $(INSTALLED)  ## the project against bare alternatives, a table a bench
	RAY_worker_niceness=0 $(BIN)/ssat bench selection --out docs/benchmarks/$$(date +%F)-selection.md
	RAY_worker_niceness=0 $(BIN)/ssat bench generation --out docs/benchmarks/$$(date +%F)-generation.md
	RAY_worker_niceness=0 $(BIN)/ssat bench training --out docs/benchmarks/$$(date +%F)-training.md

scale: $(INSTALLED)  ## 100,000,000 images: make, cluster, score, keep a tenth
	RAY_worker_niceness=0 $(BIN)/ssat run scale-100m

test: $(INSTALLED)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow" --durations=10

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow --durations=10

cluster-test: $(INSTALLED)  ## three hosts and one fault of each kind (root, `ip`)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow tests/faults --durations=10

chaos: $(INSTALLED)  ## every stage with every fault, into the table; goes on where it was
	SSAT_FAULTS=all SSAT_FAULT_FOLDER=$(FAULTS) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow tests/faults; \
	status=$$?; $(BIN)/python -m tests.faults.table $(FAULTS)/faults.jsonl docs/benchmarks/faults.md; exit $$status

manifests: $(INSTALLED)  ## validate and mutate all manifests (kubectl; SSAT_CRDS names the folder of CRDs)
	$(BIN)/python -m cluster.manifests docs/benchmarks/manifests.md

check: $(INSTALLED)  ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE := pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11

lock:  ## resolve requirements.lock anew, and the image's part of it
	$(BIN)/uv $(COMPILE) --group dev -o requirements.lock
	$(BIN)/uv $(COMPILE) --constraints requirements.lock -o cluster/requirements.lock

clean:
	rm -rf .venv store runs
