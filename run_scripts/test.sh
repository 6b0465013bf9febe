#!/usr/bin/env bash
# The whole test suite, with lint and types. Arguments go to pytest: `test.sh tests/rre`, `test.sh -m slow -n 0` (one process).
# Works in the repository, wherever it is started: paths in the arguments are relative to it.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

bash run_scripts/lint.sh
if [ $# -eq 0 ]; then set -- -m "not slow"; fi
# MindSpore's compiler spends a fifth of its time in malloc. Larger caches of free memory make that less, and change no result;
# a GLIBC_TUNABLES that is set already stays.
malloc=glibc.malloc
caches=$malloc.tcache_count=65535:$malloc.mxfast=0:$malloc.trim_threshold=268435456:$malloc.top_pad=16777216
export GLIBC_TUNABLES=${GLIBC_TUNABLES-$caches}
# Tests start some hundred processes that import this package: it is compiled for the first one.
unset PYTHONDONTWRITEBYTECODE
# Two processes, a file of tests each: MindSpore compiles graphs on one thread. tests/conftest.py puts the long files first.
python -m pytest -q --durations=10 --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
