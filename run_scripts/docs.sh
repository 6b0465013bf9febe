#!/usr/bin/env bash
# Build the pages as a site, build/docs/docs/index.html, wherever this is started. Takes no arguments. A warning, such as a dead link, is an error.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

python -c "import furo, myst_parser, sphinx" 2>/dev/null || pip install --quiet --disable-pip-version-check --editable ".[docs]"
python -m sphinx --fail-on-warning --keep-going -q -c docs . build/docs
echo "$root/build/docs/docs/index.html"
