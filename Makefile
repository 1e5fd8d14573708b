# The commands that everyone needs. `make help` lists them.
.PHONY: help install test coverage check docs demo

help:     ## This list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
install:  ## Install the package and all that its tests need
	pip install -e ".[test]"
test:     ## Run the tests as the gate does
	pytest -q -n 2 --dist loadfile
coverage: ## The tests, and the share of the package's lines that they run
	pytest -q -n 2 --dist loadfile --cov --cov-report=term
check:    ## Lint, formatting, types
	ruff check . && ruff format --check . && mypy
docs:     ## Build the documentation, strictly (pip install -e ".[docs]")
	mkdocs build --strict
demo:     ## The main job on real images, nothing to download
	hf-reprot demo
