#!/usr/bin/env bash
# A first success in a minute: text that is installed → a sparse model of two domains that answers (examples/minute.py), on a CPU.
# Takes no arguments. Works in the repository, wherever it is started: runs/minute is there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"
python -m examples.minute
