# pgsteward: what you can do here. `make` alone lists the verbs.

PYTHON ?= python3
DEMO   ?= otc
BENCH  ?= trust
export CARGO_TARGET_DIR := $(CURDIR)/target

.DEFAULT_GOAL := help
.PHONY: help demo start stop psql test chaos conformance bench lint install catalogue clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PG_CONFIG=/path/to/pg_config chooses a server of yours; without it one is provided below .dev/."

demo:  ## load real data, do the main job on it, show the result (DEMO=otc)
	@$(PYTHON) demo/run.py $(DEMO)

start:  ## build, start a private cluster, migrate; prints its DATABASE_URL
	@$(PYTHON) dev/extension.py install
	@cargo build --quiet --release --locked --package pgsteward-worker
	@url=$$($(PYTHON) dev/cluster.py start) && DATABASE_URL=$$url target/release/pgsteward migrate >&2 && echo "DATABASE_URL=$$url"

stop:  ## stop the private cluster
	@$(PYTHON) dev/cluster.py stop

psql:  ## a psql session on the private cluster
	@$(PYTHON) dev/cluster.py psql

test:  ## run every test, on the distribution's PostgreSQL and on 18 (TEST="--only scenarios --major 15 -- -k name" selects)
	@$(PYTHON) dev/provide.py check
	@$(PYTHON) tests/run.py $(TEST)

chaos:  ## kill and cut everything around the queues, then compare what everybody saw with the tables (SEED=42)
	@$(PYTHON) dev/extension.py install
	@cargo build --quiet --release --locked --package pgsteward-worker
	@$(PYTHON) tests/chaos/run.py $(if $(SEED),--seed $(SEED)) $(CHAOS)

conformance:  ## which promises of the source documents are proven by the last `make test`
	@$(PYTHON) tests/conformance.py

bench:  ## measure beside what a user would pick instead (BENCH=trust)
	@$(PYTHON) benches/run.py $(BENCH)

lint:  ## format, clippy, pyflakes, and that generated files are true
	@cargo fmt --all --check
	@cargo clippy --quiet --release --locked --package pgsteward-worker --package extension-sql --package rules-tests --all-targets -- --deny warnings
	@$(PYTHON) dev/extension.py lint
	@$(PYTHON) dev/extension.py check-script
	@$$($(PYTHON) dev/provide.py venv) -m pyflakes dev demo tests benches

install:  ## build the extension and install it into the server of PG_CONFIG
	@$(PYTHON) dev/extension.py install

catalogue:  ## write sql/catalogue.tsv anew after a change of sql/ or views/
	@$(PYTHON) dev/catalogue.py

clean:  ## stop and remove private clusters and everything built or provided
	@$(PYTHON) dev/cluster.py destroy-all
	@rm -rf "$$(readlink -f .dev)" .dev target
