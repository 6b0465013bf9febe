#!/usr/bin/env bash
# The whole test suite, with lint and types. Arguments go to pytest: `test.sh tests/routing`, `test.sh -m slow`.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

bash run_scripts/lint.sh
if [ $# -eq 0 ]; then set -- -m "not slow"; fi
python -m pytest -q --durations=10 "$@"
