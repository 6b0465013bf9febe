#!/usr/bin/env bash
# Set up .venv-peers in the repository: the environment of the peers that `pangu-sigma bench train --peers` and the slow tests of
# tests/convert run in a process of their own. mindformers needs an older transformers than the one that is worth comparing with.
# Nothing else uses it.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) # with CDPATH set, cd could print

PYTHON=${PYTHON:-python3.11}
command -v "$PYTHON" >/dev/null || { echo "error: $PYTHON is needed and not on PATH (set PYTHON=... for another Python)" >&2; exit 2; }

packages=("torch>=2.9" "transformers>=5" "deepspeed>=0.19")
venv=$root/.venv-peers
stamp=$venv/installed
if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
  echo "installing ${packages[*]} into $venv"
  "$PYTHON" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
  "$venv/bin/pip" check
  echo "${packages[*]}" > "$stamp"
fi
