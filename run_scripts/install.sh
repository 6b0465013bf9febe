# Set up .venv in the repository from requirements.txt; reused while requirements.txt and pyproject.toml stay the same.
# Meant to be sourced by the other scripts. Leaves the shell in the folder where it is, because the paths that a user gives are relative
# to that one, with .venv active and `root` set: the absolute path of the repository.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) # with CDPATH set, cd could print

PYTHON=${PYTHON:-python3.11}
for tool in "$PYTHON" g++; do
  command -v "$tool" >/dev/null || { echo "error: $tool is needed and not on PATH (set PYTHON=... for another Python 3.11)" >&2; exit 2; }
done

stamp=$root/.venv/installed.sha256
wanted=$(cat "$root/requirements.txt" "$root/pyproject.toml" | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing requirements.txt into $root/.venv (about two minutes and 4 GB the first time)"
  "$PYTHON" -m venv "$root/.venv"
  "$root/.venv/bin/pip" install --quiet --disable-pip-version-check -r "$root/requirements.txt"
  "$root/.venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --editable "$root"
  "$root/.venv/bin/pip" check
  echo "$wanted" > "$stamp"
fi
source "$root/.venv/bin/activate"
