# Set up ./.venv from requirements.txt; reused while requirements.txt and pyproject.toml stay the same.
# Meant to be sourced by the other scripts, from any folder: leaves the shell in the repository with .venv active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3.11}
for tool in "$PYTHON" g++; do
  command -v "$tool" >/dev/null || { echo "error: $tool is needed and not on PATH (set PYTHON=... for another Python 3.11)" >&2; exit 2; }
done

stamp=.venv/installed.sha256
wanted=$(cat requirements.txt pyproject.toml | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  echo "installing requirements.txt into .venv (about two minutes and 4 GB the first time)"
  "$PYTHON" -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
  .venv/bin/pip check
  echo "$wanted" > $stamp
fi
source .venv/bin/activate
