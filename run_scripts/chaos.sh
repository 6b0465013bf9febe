#!/usr/bin/env bash
# Faults done to runs on purpose, and counted: kills at every file, damaged files, full disks, lost ranks, bad input.
# `chaos.sh` takes half an hour on two cores, `chaos.sh --full` some hours; finished cases are kept, and the same command
# goes on after a kill. `--only ROW` does one row. Ends with status 0 only if every case holds.
# Works in the repository, wherever it is started: results are in runs/chaos, or where --work says.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

export PYTHONPATH="$root/src:$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
python -m chaos "$@"
