# make book [PROFILE=cpu]   data, every chapter, then HTML in _build/html/index.html; trained models come with the repository
# make book TRAIN=1         the same, but every model is trained anew
# make test                 every test that a machine without a GPU can run
# make check                lint, format, types and the fast tests, in under a minute
# make clean                forget the built book; models under runs/ stay
PROFILE ?= cpu
PYTHON  ?= python3
STAMP   := .venv/.installed
FAST    := $(addprefix tests/,core kernels models inference evaluation test_layers.py book/test_claims.py)

.PHONY: book test check clean

book: $(STAMP)
	.venv/bin/hybridsep book --profile $(PROFILE) $(if $(TRAIN),--train)

test: $(STAMP)
	.venv/bin/python -m pytest tests -q -n 2 --dist loadscope --no-loadscope-reorder --durations=15

check: $(STAMP)
	.venv/bin/ruff check -q src tests book
	.venv/bin/ruff format -q --check src tests book/headline.py book/rehearsal.py book/studies book/benchmarks
	.venv/bin/ruff format -q --check --line-length 100 book/*.ipynb
	.venv/bin/mypy src
	.venv/bin/python -m pytest $(FAST) -q -n 2 -m "not slow and not browser"

clean:
	rm -rf _build

# The stamp is written last, so an interrupted installation starts again.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "hybridsep needs Python 3.10 or newer; choose one with: make PYTHON=python3.11" >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -c 'import ensurepip' || \
	  { echo "Python cannot make virtual environments here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
