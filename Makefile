# make demo   boot a stock Debian kernel, profile it, write a flame graph (ARGS="-o DIR" says where)
# make test   lint, type check, all tests (real guests too)
# make lint   ruff, mypy, shellcheck
# make bench  every benchmark, one after the other
# make clean  remove what the others made, except the user's cache of kernels
# What is missing on a Debian or Ubuntu machine is installed first (tools/setup.sh).

PYTHON = .venv/bin/python
ARGS =

.PHONY: demo test lint lint-only bench clean

demo:
	@tools/setup.sh demo
	.venv/bin/guestprof demo $(ARGS)

test:
	@tools/setup.sh test
	@$(MAKE) --no-print-directory lint-only
	@tools/test.sh $(ARGS)

lint:
	@tools/setup.sh lint
	@$(MAKE) --no-print-directory lint-only

lint-only:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	shellcheck tools/*.sh examples/*.sh .ci/run

bench:
	@tools/setup.sh bench
	@set -e; for file in benchmarks/*.py; do \
	    name=$$(basename "$$file" .py); \
	    case $$name in _*) continue ;; esac; \
	    echo "== $$name"; $(PYTHON) -m "benchmarks.$$name" $(ARGS); \
	done

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/js/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
