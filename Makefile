# `make demo` and `make test` work in a fresh clone: each sets up .venv first.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: demo test docs docs-run bench clean

.venv/ok: setup.py settings.ini pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "fasterai_sched needs Python 3.10 or newer, this is " + sys.version'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q -e '.[dev]'
	touch .venv/ok

demo: .venv/ok         ## The seed's tutorial on real digits: a transcript a schedule, a table and schedules.png
	$(PY) examples/schedules.py

test: .venv/ok         ## Lint, then every test
	$(PY) -m ruff check -q .
	$(PY) -m pytest -n 2 --dist loadgroup

docs: .venv/ok         ## The site, from the pages as they are stored, into _docs/
	$(PY) nbs/build_site.py

docs-run: .venv/ok     ## Execute the pages as they stand and keep their output; make the table of guarantees from its tests
	$(PY) tests/contract.py > nbs/guarantees.md
	$(PY) nbs/run_pages.py

bench: .venv/ok        ## What it costs beside the peers: ten minutes; a table, benchmarks/run.json and run.png
	$(PY) -m pip install -q -e '.[bench]'
	$(PY) benchmarks/run.py

clean:
	rm -rf .venv build dist *.egg-info schedules.png
