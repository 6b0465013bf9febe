#!/usr/bin/env bash
# Lint, format and types of the whole repository, wherever it is started, as test.sh and .pre-commit-config.yaml run them. Changes
# nothing; `ruff check --fix . && ruff format .` mends most of what it finds.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

ruff check --quiet .
ruff format --check --quiet .
mypy
